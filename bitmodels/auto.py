"""AutoBitModel: a model from its config or from a checkpoint, without naming its class."""

from pathlib import Path

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError
from bitmodels.base import BitModelBase, BitModelConfig
from bitmodels.checkpoint import read_config
from bitmodels.registry import MODEL_REGISTRY, model_class


class AutoBitModel:
    """Finds the model class by its config's type or by the checkpoint's `model_type`."""

    @staticmethod
    def from_config(config: BitModelConfig, quant_config: BitQuantConfig | None = None) -> BitModelBase:
        """A new model. `quant_config` is BitNet b1.58 if None.

        Raises:
            ArgumentError: no model has a config of this type.
        """
        for model in MODEL_REGISTRY.values():
            if type(config) is model.config_class:
                return model(config, quant_config)
        known = ", ".join(model.config_class.__name__ for model in MODEL_REGISTRY.values())
        raise ArgumentError("config", f"a {type(config).__name__}", f"one of {known}")

    @staticmethod
    def from_pretrained(directory: str | Path) -> BitModelBase:
        """The model saved in `directory`, in eval mode.

        Raises:
            CheckpointError: a file is missing, truncated or damaged.
            ModelNotFoundError: config.json names a model that is not registered.
        """
        return model_class(read_config(Path(directory)).model_type).from_pretrained(directory)

    @staticmethod
    def list_models() -> list[str]:
        """The names of the registered models."""
        return sorted(MODEL_REGISTRY)
