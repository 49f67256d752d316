"""The passes of training: float weights to packed ternary ones, and back; int8 activations back to floats.

Quantizing takes three launches: statistics of rows, scales of them, packing. Sums are in float64 and in a fixed order:
the same input gives the same bits.
"""

import triton
import triton.language as tl

SMALLEST_MEAN = tl.constexpr(1e-5)  # bitcore.quantizers: absmean's and threshold's scales are at least this
SMALLEST_MAX = tl.constexpr(1e-8)


@triton.jit(do_not_specialize=["columns"])
def row_statistics_kernel(w, statistics, columns, ABSMEAN: tl.constexpr, TILE: tl.constexpr):
    """statistics[row] = the sum of abs(w[row]) or, not ABSMEAN, the largest (NaN where there is one), float64."""
    row = tl.program_id(0).to(tl.int64)
    w += row * columns
    total = tl.zeros((TILE,), tl.float64)
    for first in range(0, columns, TILE):
        index = first + tl.arange(0, TILE)
        magnitude = tl.abs(tl.load(w + index, mask=index < columns, other=0.0).to(tl.float32)).to(tl.float64)
        if ABSMEAN:
            total += magnitude
        else:
            total = tl.maximum(total, magnitude, propagate_nan=tl.PropagateNan.ALL)
    if ABSMEAN:
        tl.store(statistics + row, tl.sum(total, 0))
    else:
        tl.store(statistics + row, _largest(total))


@triton.jit(do_not_specialize=["rows", "columns"])
def scales_kernel(
    statistics, scales, rows, columns, ABSMEAN: tl.constexpr, PER_CHANNEL: tl.constexpr, TILE: tl.constexpr
):
    """scales float32 [rows] or, not PER_CHANNEL, [1] by one program."""
    if PER_CHANNEL:
        index = tl.program_id(0) * TILE + tl.arange(0, TILE)
        value = tl.load(statistics + index, mask=index < rows, other=0.0)
        tl.store(scales + index, _scale(value, columns, ABSMEAN), mask=index < rows)
    else:
        total = tl.zeros((TILE,), tl.float64)
        for first in range(0, rows, TILE):
            index = first + tl.arange(0, TILE)
            value = tl.load(statistics + index, mask=index < rows, other=0.0)
            if ABSMEAN:
                total += value
            else:
                total = tl.maximum(total, value, propagate_nan=tl.PropagateNan.ALL)
        if ABSMEAN:
            tl.store(scales, _scale(tl.sum(total, 0), rows.to(tl.int64) * columns, ABSMEAN))
        else:
            tl.store(scales, _scale(_largest(total), columns, ABSMEAN))


@triton.jit
def _largest(values):
    """The largest of float64 `values`, all >= 0; NaN where there is one. tl.max does not promise that for NaN."""
    has_nan = tl.max((values != values).to(tl.int32), 0)
    return tl.where(has_nan != 0, float("nan"), tl.max(values, 0))


@triton.jit
def _scale(statistic, count, ABSMEAN: tl.constexpr):
    """NaN stays NaN: it is not less than anything."""
    if ABSMEAN:
        mean = (statistic / count.to(tl.float64)).to(tl.float32)
        return tl.where(mean < SMALLEST_MEAN, SMALLEST_MEAN, mean)
    else:
        largest = statistic.to(tl.float32)
        return tl.where(largest < SMALLEST_MAX, SMALLEST_MAX, largest)


@triton.jit(do_not_specialize=["columns", "row_bytes"])
def pack_kernel(
    w,
    scales,
    packed,
    columns,
    row_bytes,
    threshold_factor,
    ABSMEAN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    PER_BYTE: tl.constexpr,
    SLOTS: tl.constexpr,
    TILE: tl.constexpr,
):
    """w [rows, columns] to packed [rows, row_bytes], in 2bit (4 weights a byte) or base3 (5); SLOTS as in arrange."""
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(scales + row) if PER_CHANNEL else tl.load(scales)
    if ABSMEAN:
        factor = tl.div_rn(1.0, scale)
        bound = 0.5
    else:
        factor = 1.0
        bound = threshold_factor * scale
    byte = tl.program_id(1) * TILE + tl.arange(0, TILE)
    place = tl.arange(0, SLOTS)[None, :]
    column = byte[:, None] * PER_BYTE + place
    mask = (place < PER_BYTE) & (column < columns)
    value = tl.load(w + row * columns + column, mask=mask, other=0.0).to(tl.float32) * factor
    code = 1 + (value > bound).to(tl.int32) - (value < -bound).to(tl.int32)
    if PER_BYTE == 4:
        result = tl.sum(code << (2 * place), 1)
    else:
        digits = tl.sum(tl.where(place < PER_BYTE, code * _power_of_3(4 - place), 0), 1)
        result = (256 * digits + 242) // 243
    tl.store(packed + row * row_bytes + byte, result.to(tl.uint8), mask=byte < row_bytes)


@triton.jit(do_not_specialize=["columns", "row_bytes"])
def unpack_kernel(
    packed,
    scales,
    w,
    columns,
    row_bytes,
    PER_CHANNEL: tl.constexpr,
    PER_BYTE: tl.constexpr,
    SLOTS: tl.constexpr,
    TILE: tl.constexpr,
):
    """w [rows, columns] = weights of `packed` times their scale, in w's dtype."""
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(scales + row) if PER_CHANNEL else tl.load(scales)
    byte = tl.program_id(1) * TILE + tl.arange(0, TILE)
    place = tl.arange(0, SLOTS)[None, :]
    column = byte[:, None] * PER_BYTE + place
    bytes_ = tl.load(packed + row * row_bytes + byte, mask=byte < row_bytes, other=0).to(tl.int32)[:, None]
    if PER_BYTE == 4:
        code = (bytes_ >> (2 * place)) & 3
    else:
        code = (((bytes_ * _power_of_3(place)) & 255) * 3) >> 8
    value = (code - 1).to(tl.float32) * scale
    tl.store(w + row * columns + column, value.to(w.dtype.element_ty), mask=(place < PER_BYTE) & (column < columns))


@triton.jit
def scale_tokens_kernel(q, scales, x, columns, PER_TENSOR: tl.constexpr, TILE: tl.constexpr):
    """x [tokens, columns] = q * its token's scale, in x's dtype."""
    token = tl.program_id(0).to(tl.int64)
    scale = tl.load(scales) if PER_TENSOR else tl.load(scales + token)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    value = tl.load(q + token * columns + column, mask=column < columns, other=0).to(tl.float32) * scale
    tl.store(x + token * columns + column, value.to(x.dtype.element_ty), mask=column < columns)


@triton.jit
def _power_of_3(exponent):
    """3**exponent for 0 to 4; anything for others."""
    return tl.where(
        exponent == 0, 1, tl.where(exponent == 1, 3, tl.where(exponent == 2, 9, tl.where(exponent == 3, 27, 81)))
    )
