"""Weights of Bit layers as the exporters write them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import dequantize
from bitlayers import BitLayer

PART_ROWS = 4096  # of a table, read or unpacked together


def packed_weight(layer: BitLayer) -> PackedWeight:
    """The packed weight of a deployed layer, or what deploying would pack; nothing is kept in the layer.

    Raises:
        QuantizationError: a master weight is NaN or infinite.
    """
    if layer.is_deployed:
        return PackedWeight(
            layer.get_buffer("weight_packed"),
            layer.get_buffer("weight_scale"),
            layer._buffers.get("weight_zero_point"),
            layer.matrix_shape[1],
        )
    return PackedWeight.from_float(layer.weight, layer.quant_config)


def dense_weight(weight: PackedWeight, layer: BitLayer, dtype: torch.dtype) -> Tensor:
    """`weight` of `layer` dequantized to [rows, columns] in `dtype`, some rows at a time."""
    dense = torch.empty(layer.matrix_shape, dtype=dtype)
    for part, values in dense_parts(weight, layer):
        dense[part] = values
    return dense


def dense_parts(weight: PackedWeight, layer: BitLayer) -> Iterator[tuple[slice, Tensor]]:
    """`weight` of `layer` dequantized, some rows at a time: (rows, float32 [rows, columns])."""
    rows, columns = layer.matrix_shape
    for begin in range(0, rows, PART_ROWS):
        part = slice(begin, begin + PART_ROWS)
        scale = weight.scale if weight.scale.shape[0] == 1 else weight.scale[part]
        values = PackedWeight(weight.packed[part], scale, None, columns).values(layer.quant_config)
        yield part, dequantize(values, scale, None, layer.quant_config)


def dtype_of_ternary_floats(scale: Tensor, dtype: torch.dtype) -> torch.dtype:
    """`dtype` if it can hold `scale` exactly, else float32."""
    return dtype if bool((scale.to(dtype).float() == scale).all()) else torch.float32
