"""BitLabConfig: which linear layers of vLLM's model are Bit layers, by the quantization_config of a checkpoint."""

from typing import Any

import torch
from torch import nn
from typing_extensions import Self
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, CheckpointError
from bitmodels.layer_groups import METHOD, LayerGroup, read_groups
from bitmodels.plugins.vllm.linear_method import BitLabLinearMethod


@register_quantization_config(METHOD)
class BitLabConfig(QuantizationConfig):  # type: ignore[misc]  # vLLM is seldom installed beside
    """Reads what the transformers plug-in saves, deployed.

    Args:
        groups: the layers of the checkpoint. Names are those of the checkpoint: vLLM fuses some of them, and says which
            in `packed_modules_mapping`.

    Raises:
        CheckpointError: a layer has masters in place of packed weights, or a norm inside.
    """

    def __init__(self, groups: tuple[LayerGroup, ...]) -> None:
        super().__init__()
        self.quant_configs: dict[str, BitQuantConfig] = {}
        for group in groups:
            if not group.deployed:
                names = ", ".join(group.modules[:3])
                raise CheckpointError(f"{names}, ... hold master weights: deploy() the model, and save it again")
            if group.norm_eps is not None:
                raise CheckpointError(f"{', '.join(group.modules[:3])}, ... have a norm inside, which vLLM's have not")
            self.quant_configs.update(dict.fromkeys(group.modules, group.quant_config))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.quant_configs)} layers)"

    def get_name(self) -> str:
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 75  # of the CUDA kernels: Turing

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []  # config.json has everything

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The `quantization_config` of a config.json.

        Raises:
            CheckpointError: it has no layers, as a request has, or is damaged.
        """
        if config.get("layers") is None:
            raise CheckpointError(
                "quantization_config has no layers: save the model by save_pretrained, with the transformers plug-in"
            )
        return cls(read_groups(config["layers"]))

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Takes the names that a model of vLLM has for the checkpoint's."""
        self.quant_configs = hf_to_vllm_mapper.apply_dict(self.quant_configs)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """The method of the layer `prefix`.

        Raises:
            ArgumentError: the parts of a fused layer are not of one kind, or an embedding or a head is packed.
        """
        stem, dot, leaf = prefix.rpartition(".")
        parts = [leaf] if prefix in self.quant_configs else self.packed_modules_mapping.get(leaf, [leaf])
        names = [f"{stem}{dot}{part}" for part in parts]
        found = [self.quant_configs.get(name) for name in names]
        config = found[0]
        if any(other != config for other in found):
            kinds = ", ".join(f"{name}: {other or 'not packed'}" for name, other in zip(names, found, strict=True))
            raise ArgumentError(prefix, kinds, "parts of one kind, since vLLM runs them as one layer")
        if not isinstance(layer, LinearBase):
            if config is not None:
                raise ArgumentError(prefix, f"packed, and a {type(layer).__name__}", "in floating point for vLLM")
            return None
        return UnquantizedLinearMethod() if config is None else BitLabLinearMethod(config, prefix)
