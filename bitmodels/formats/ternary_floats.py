"""Ternary weights in floating point, as TriLM publishes them (Spectra, arXiv 2407.12327): fp16 values of -s, 0 and +s.

TriLM's scales are those of the devices that trained it, so a matrix may have one for each block of its rows or columns.
"""

from functools import partial

import torch
from torch import Tensor

from bitcore.checks import check_finite
from bitcore.exceptions import DtypeError, QuantizationError, ShapeError
from bitcore.quantizers import QuantizedWeight
from bitmodels.formats.scales import simplest_scale, zero_groups

COLUMN_SHARDS = (1, 2, 3, 4, 6, 8, 12, 16)  # devices over which a row may have been spread
SMALLEST_SHARD = 32  # columns; any matrix is ternary in parts of one


def ternary_of_floats(weight: Tensor) -> QuantizedWeight:
    """The int8 weights [N, K] and the scale float32 [1], [N] or [N, groups] whose product is exactly `weight`.

    Args:
        weight: [N, K], floating point, in which a row or an equal part of one holds -s, 0 and +s alone.

    Raises:
        ShapeError, DtypeError: `weight` is no matrix of floating-point numbers.
        QuantizationError: it is not ternary; the message shows a row's values.
    """
    if weight.dim() != 2 or weight.numel() == 0:
        raise ShapeError("weight", f"of shape {list(weight.shape)}", "[out_features, in_features]")
    if not weight.is_floating_point():
        raise DtypeError("weight", weight.dtype, "a floating-point dtype")
    out_features, in_features = weight.shape
    check_finite("weight", weight)
    magnitude = weight.abs()
    for shards in COLUMN_SHARDS:
        if in_features % shards != 0 or (shards > 1 and in_features // shards < SMALLEST_SHARD):
            continue
        parts = magnitude.reshape(out_features, shards, -1)
        scale = parts.amax(-1, keepdim=True)
        if bool(((parts == 0) | (parts == scale)).all()):
            ternary = weight.sign().to(torch.int8)
            scale = simplest_scale(scale.squeeze(-1).float(), partial(zero_groups, ternary, shards))
            return QuantizedWeight(ternary, scale, None)
    raise QuantizationError("weight", _what_it_is(magnitude), "-s, 0 and +s alone in every row or equal part of a row")


def _what_it_is(magnitude: Tensor) -> str:
    largest = magnitude.amax(1, keepdim=True)
    row = int(((magnitude != 0) & (magnitude != largest)).any(1).nonzero()[0])
    values = sorted(set(magnitude[row].tolist()))
    examples = ", ".join(f"{value:.6g}" for value in values[-3:])
    return f"not ternary: row {row} has {len(values)} magnitudes, such as {examples}"
