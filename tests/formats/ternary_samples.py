"""Ternary matrices for the tests of foreign formats."""

import torch
from torch import Tensor

from bitcore import BitQuantConfig
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import QuantizedWeight
from bitmodels.formats.encoded_weight import EncodedWeight, TernaryFormat
from bitmodels.formats.scales import config_for


def golden_ternary() -> Tensor:
    """int8 [8, 256] without a random generator: the matrix of the golden vectors."""
    index = torch.arange(8 * 256)
    mixed = (index * 2654435761 + 12345) & 0xFFFFFFFF
    mixed ^= mixed >> 15
    return (mixed % 3 - 1).to(torch.int8).reshape(8, 256)


def random_ternary(out_features: int, in_features: int) -> Tensor:
    return torch.randint(-1, 2, (out_features, in_features), dtype=torch.int8)


def decoded(
    encoding: TernaryFormat, data: Tensor, out_features: int, in_features: int, own_scale: Tensor | None = None
) -> QuantizedWeight:
    return EncodedWeight("layer.weight", encoding, out_features, in_features, data, own_scale).decode()


def packed(ternary: Tensor, scale: Tensor, storage_format: str = "2bit") -> tuple[PackedWeight, BitQuantConfig]:
    config = config_for(scale, ternary.shape[1], BitQuantConfig(storage_format=storage_format))
    return PackedWeight.from_quantized(QuantizedWeight(ternary, scale, None), config), config
