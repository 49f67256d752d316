"""Checkpoints of quant_method "bitnet" for a BitLabQuantConfig.

transformers reads such a checkpoint by its own BitNet classes, and raises ValueError for a `quantization_config`
argument of any other class; it has no hook for one. That one case, a BitLabQuantConfig, is answered here; everything
else goes to transformers as before.
"""

from typing import Any

from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from bitmodels.plugins.transformers.config import BitLabQuantConfig

_merge = AutoHfQuantizer.merge_quantization_configs


def _merge_quantization_configs(
    quantization_config: Any, quantization_config_from_args: QuantizationConfigMixin | None
) -> QuantizationConfigMixin:
    if isinstance(quantization_config_from_args, BitLabQuantConfig):
        found = quantization_config if isinstance(quantization_config, dict) else quantization_config.to_dict()
        if found.get("quant_method") == "bitnet":
            return quantization_config_from_args.for_bitnet(found)
    merged: QuantizationConfigMixin = _merge(quantization_config, quantization_config_from_args)
    return merged


def serve_bitnet_checkpoints() -> None:
    """From now on `from_pretrained` takes a BitLabQuantConfig for "bitnet" checkpoints."""
    AutoHfQuantizer.merge_quantization_configs = staticmethod(_merge_quantization_configs)  # type: ignore[method-assign]
