"""The fused operators of training on the CPU (csrc/cpu/training.h)."""

import torch
from torch import Tensor

from bitcore.config import BitQuantConfig
from bitcore.kernels.compiled import STORAGE_FORMATS
from bitcore.kernels.training import TrainingOperators
from bitcore.packed_weight import PackedWeight


class CpuTrainingOperators(TrainingOperators):
    """Loops compiled for the instruction set of the CPU kernel with this `index`."""

    def __init__(self, config: BitQuantConfig, index: int) -> None:
        super().__init__(config)
        self._index = index
        self._format = STORAGE_FORMATS.index(config.packed_format)

    def _quantize_weight(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        packed, scale = torch.ops.bitlab.quantize_ternary(
            weight,
            config.weight_granularity == "per_channel",
            config.weight_quantizer == "absmean",
            config.threshold_factor,
            self._format,
            self._index,
        )
        return packed, scale

    def dequantize_weight(self, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
        values: Tensor = torch.ops.bitlab.dequantize_ternary(
            weight.packed, weight.scale, weight.in_features, self._format, dtype
        )
        return values

    def quantize_activations(self, x: Tensor) -> tuple[Tensor, Tensor]:
        per_tensor = self.config.activation_granularity == "per_tensor"
        q, scale = torch.ops.bitlab.quantize_tokens(x, per_tensor, self._index)
        return q, scale
