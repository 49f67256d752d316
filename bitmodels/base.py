"""BitModelBase: a model with a config, a quantization config, and a checkpoint on disk."""

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from typing_extensions import Self

from bitcore.checks import config_or_default
from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, CheckpointError, ConfigError, LayerStateError
from bitcore.kernels.base import MAX_IN_FEATURES
from bitlayers import BitLayer, deploy
from bitmodels.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    CheckpointConfig,
    load_tensors,
    read_config,
    read_tensors,
    write_checkpoint,
)
from bitmodels.meta_device import on_meta_device

# Of features, channels or tokens: as many as a layer may have inputs, so that no product of two overflows.
Size = Annotated[int, Field(ge=1, le=MAX_IN_FEATURES)]


class BitModelConfig(BaseModel):
    """Sizes of a model. Frozen; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BitModelBase(nn.Module):
    """Base of the models. A subclass sets `config_class` and takes (config, quant_config) in its __init__."""

    model_type: ClassVar[str]  # set by @register_model
    config_class: ClassVar[type[BitModelConfig]]

    def __init__(self, config: BitModelConfig, quant_config: BitQuantConfig | None = None) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise ArgumentError("config", f"a {type(config).__name__}", f"a {self.config_class.__name__}")
        self.config: Any = config
        self.quant_config = config_or_default(quant_config)

    @property
    def is_deployed(self) -> bool:
        """Whether a Bit layer of the model is deployed."""
        return any(isinstance(module, BitLayer) and module.is_deployed for module in self.modules())

    def train(self, mode: bool = True) -> Self:
        """As nn.Module.train. Raises LayerStateError for mode=True after deploy, before any layer has changed.

        Deployed layers that are `frozen` stay in eval mode.
        """
        deployed = [module for module in self.modules() if isinstance(module, BitLayer) and module.is_deployed]
        if mode and not all(layer.frozen for layer in deployed):
            raise LayerStateError(f"{type(self).__name__} is deployed: it has no master weights to train")
        return super().train(mode)

    def deploy(self) -> Self:
        """Deploys every Bit layer, all or none; see bitlayers.deploy."""
        return deploy(self)

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes config.json and model.safetensors, in training or deployed state, into `directory`.

        Raises:
            ArgumentError: `directory` has the index of another model's shards.
        """
        config = CheckpointConfig(
            model_type=self.model_type,
            deployed=self.is_deployed,
            config=self.config.model_dump(mode="json"),
            quant_config=self.quant_config,
        )
        write_checkpoint(Path(directory), config, self.state_dict())

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Reads what `save_pretrained` wrote, in eval mode.

        Raises:
            CheckpointError: a file is missing, truncated or damaged, or holds another model than this class.
        """
        directory = Path(directory)
        checkpoint = read_config(directory)
        if checkpoint.model_type != cls.model_type:
            raise CheckpointError(
                f"{directory / CONFIG_FILE} holds a {checkpoint.model_type}, expected a {cls.model_type}"
            )
        tensors = read_tensors(directory)
        try:
            config = cls.config_class.model_validate(checkpoint.config)
        except ConfigError as error:
            raise CheckpointError(f"{directory / CONFIG_FILE}: {error}") from error
        with on_meta_device():  # a config can ask for any size; only what the file holds is ever allocated
            model = cls(config, checkpoint.quant_config).eval()
            if checkpoint.deployed:
                model.deploy()
        load_tensors(model, tensors, directory / WEIGHTS_FILE)
        return model
