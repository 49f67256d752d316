"""What training needs of a kernel besides its product: fused passes between float tensors and quantized ones."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from bitcore.config import BitQuantConfig
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import quantize_activations

FUSED_QUANTIZERS = ("absmean", "threshold")
FUSED_GRANULARITIES = ("per_tensor", "per_channel")


class TrainingOperators(ABC):
    """Between floats and quantized values of `config`, as bitcore.quantizers says, in one pass over memory each."""

    def __init__(self, config: BitQuantConfig) -> None:
        self.config = config

    @staticmethod
    def serve(config: BitQuantConfig) -> bool:
        """Whether `config` has fused operators; all others train on the PyTorch definitions."""
        return (
            config.weight_dtype == "ternary"
            and config.weight_quantizer in FUSED_QUANTIZERS
            and config.weight_granularity in FUSED_GRANULARITIES
        )

    def quantize_weight(self, weight: Tensor) -> PackedWeight:
        """Quantizes and packs `weight` [N, K] float, not empty. NaN or Inf are no error: the scale shows them."""
        packed, scale = self._quantize_weight(weight)
        if self.config.weight_scale_dtype != "float32":
            scale = scale.to(getattr(torch, self.config.weight_scale_dtype)).float()
        return PackedWeight(packed, scale, None, weight.shape[1])

    @abstractmethod
    def _quantize_weight(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Packed bytes uint8 [N, bytes] and float32 scale [1] or [N]."""

    @abstractmethod
    def dequantize_weight(self, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
        """The weight [N, K] of `dtype`."""

    def quantize_activations(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """int8 [tokens, K] and float32 scale [tokens, 1] or [1] of `x` [tokens, K]."""
        return quantize_activations(x, self.config.activation_granularity)

    def dequantize_activations(self, q: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """q * scale in float32, rounded to `dtype`: [tokens, K]."""
        return torch.mul(q, scale, out=torch.empty_like(q, dtype=dtype))  # one pass, the cast included
