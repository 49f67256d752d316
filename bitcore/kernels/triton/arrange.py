"""Activations for the products: int8 with a scale a token, or as they come, in the order of K of weights.py.

A program takes one token and keeps it in registers, where it may normalize it first (RMSNorm); a longer one it reads
again, from the L1 cache, once it knows the largest magnitude. per_tensor: the largest magnitudes of all tokens are
written first, by a launch of their own.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

SMALLEST = tl.constexpr(1e-5)  # absmax: m is at least this
LARGEST_NUMBER = tl.constexpr(127.0 * 65536.0)  # of three digits: what the largest magnitude becomes
SMALLEST_FLOATING = tl.constexpr(1e-30)  # and the smallest that does
LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32: anything else is Inf or NaN
ROUND = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it rounds to a whole number, half to even
BITS_OF_ROUND = tl.constexpr(0x4B400000)  # those of ROUND + n, n a whole number, are n more
# The lowest bytes of four registers in one, if a mask says so, and their sum added to the first of four totals.
_LOWEST_BYTES = tl.constexpr(
    "{.reg .b32 l, h; prmt.b32 l, $5, $6, 0x0040; prmt.b32 h, $7, $8, 0x0040; prmt.b32 $0, l, h, 0x5410; "
    "and.b32 $0, $0, $9; dp4a.s32.s32 $1, $0, 0x01010101, $13; mov.b32 $2, $14; mov.b32 $3, $15; mov.b32 $4, $16;}"
)


@triton.jit
def largest_magnitudes_kernel(x, largest, in_features, token_stride, feature_stride, TILE: tl.constexpr):
    """largest[token] = max(abs(x[token])), Inf or NaN where the token holds one."""
    token = tl.program_id(0).to(tl.int64)
    tl.store(largest + token, _largest_magnitude(x + token * token_stride, in_features, feature_stride, TILE))


@triton.jit(do_not_specialize=["tokens"])
def arrange_kernel(
    x,
    q,
    scales,
    sums,
    largest_magnitudes,
    norm_weight,
    norm_eps,
    tokens,
    in_features,
    token_stride,
    feature_stride,
    width,
    PER_BYTE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
    EARLY: tl.constexpr,
    QUANTIZE: tl.constexpr,
    PER_TENSOR: tl.constexpr,
    PTX: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """x [tokens, in_features] to q [tokens, width], width a multiple of PER_BYTE * BLOCK, zeros at the end.

    QUANTIZE: q is int8, with scales float32 [tokens] and sums int32 [tokens] of q; 0 where a scale is NaN.
    Otherwise q has x's dtype. TILE: places of q of a step, whole blocks where PER_BYTE is a power of two. PARTS: how
    many steps a token has, if they all stay in registers, else 0. norm_weight [in_features] or None: of an RMSNorm of
    x, where PARTS is not 0. EARLY: the next kernel may start before the one in front of this one has ended.
    """
    if OVERLAP:
        _wait(EARLY)
    token = tl.program_id(0).to(tl.int64)
    x += token * token_stride
    q += token * width
    kept = ()
    for part in tl.static_range(PARTS):
        kept = kept + (_load_features(x, part * TILE, in_features, feature_stride, PER_BYTE, BLOCK, TILE),)
    if norm_weight is not None:
        kept = _normalized(kept, norm_weight, norm_eps, in_features, PER_BYTE, BLOCK, TILE, PARTS)
    factor, finite = 0.0, True
    if QUANTIZE:
        if PER_TENSOR:
            largest = _largest_magnitude(largest_magnitudes, tokens, 1, 1024)
        elif PARTS > 0:
            largest = largest_of(kept, PARTS)
        else:
            largest = _largest_magnitude(x, in_features, feature_stride, TILE)
        finite = largest <= LARGEST
        factor, scale = factor_and_scale(largest, 1)
    sums_of_q = tl.zeros((TILE,), tl.int32)
    if PARTS > 0:
        for part in tl.static_range(PARTS):
            sums_of_q = _write_features(kept[part], part * TILE, factor, finite, q, width, sums_of_q, PTX, QUANTIZE)
    else:
        for first in range(0, width, TILE):
            values = _load_features(x, first, in_features, feature_stride, PER_BYTE, BLOCK, TILE)
            sums_of_q = _write_features(values, first, factor, finite, q, width, sums_of_q, PTX, QUANTIZE)
    if QUANTIZE:
        tl.store(scales + token, tl.where(finite, scale, float("nan")))
        tl.store(sums + token, tl.sum(sums_of_q, 0))


@triton.jit
def _wait(EARLY: tl.constexpr):
    """For the end of the kernel in front; the next one may start before that or after it."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    else:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def _normalized(
    kept,
    norm_weight,
    norm_eps,
    in_features,
    PER_BYTE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """A token's parts / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467), rounded once, to their dtype.

    Squares are added in float64, so that the sum is the same to the bit however a token is cut.
    """
    squares = tl.zeros((TILE,), tl.float64)
    for part in tl.static_range(PARTS):
        values = kept[part].to(tl.float32)
        squares += (values * values).to(tl.float64)
    mean = tl.div_rn(tl.sum(squares, 0).to(tl.float32), tl.cast(in_features, tl.float32))
    scale = tl.rsqrt(mean + norm_eps)
    normalized = ()
    for part in tl.static_range(PARTS):
        weight = _load_features(norm_weight, part * TILE, in_features, 1, PER_BYTE, BLOCK, TILE)
        values = weight.to(tl.float32) * (scale * kept[part].to(tl.float32))
        inside = _features(part * TILE, PER_BYTE, BLOCK, TILE) < in_features
        values = tl.where(_in_order_of_q(inside, PER_BYTE, BLOCK, TILE), values, 0.0)  # where the scale is Inf, too
        normalized = normalized + (values.to(kept[part].dtype),)
    return normalized


@triton.jit
def largest_of(values, COUNT: tl.constexpr):
    """max(abs()) of COUNT tensors, Inf or NaN where one is."""
    bits = magnitude_bits(values[0].to(tl.float32))
    for i in tl.static_range(1, COUNT):
        bits = tl.maximum(bits, magnitude_bits(values[i].to(tl.float32)))
    return tl.max(bits).to(tl.float32, bitcast=True)


@triton.jit
def factor_and_scale(largest, DIGITS: tl.constexpr):
    """float32: what makes whole numbers of a token, and values of these again (docs/numerics.md)."""
    if DIGITS == 1:
        largest = tl.maximum(largest, SMALLEST)
        return tl.div_rn(1.0, largest) * 127.0, tl.div_rn(largest, 127.0)
    else:
        largest = tl.maximum(largest, SMALLEST_FLOATING)
        return tl.div_rn(LARGEST_NUMBER, largest), tl.div_rn(largest, LARGEST_NUMBER)


@triton.jit
def _load_features(
    x, first, in_features, feature_stride, PER_BYTE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr
):
    """[TILE] of x, as they come to q from place `first` on; zeros after the end."""
    feature = _features(first, PER_BYTE, BLOCK, TILE)
    values = tl.load(x + feature.to(tl.int64) * feature_stride, mask=feature < in_features, other=0.0)
    return _in_order_of_q(values, PER_BYTE, BLOCK, TILE)


@triton.jit
def _features(first, PER_BYTE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """[TILE] features that come to q from place `first` on, in the order in which they are loaded."""
    place = first + tl.arange(0, TILE)
    if PER_BYTE == 5:
        place = (place // (5 * BLOCK) * BLOCK + place % BLOCK) * 5 + place % (5 * BLOCK) // BLOCK
    return place  # else in their own order, so that as many as possible are loaded at once


@triton.jit
def _in_order_of_q(values, PER_BYTE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """What belongs to `_features`, one after the other as in q."""
    if PER_BYTE % 2 == 0:
        blocks = tl.reshape(values, (TILE // (PER_BYTE * BLOCK), BLOCK, PER_BYTE))
        values = tl.reshape(tl.permute(blocks, (0, 2, 1)), (TILE,))
    return values


@triton.jit
def _write_features(values, first, factor, finite, q, width, total, PTX: tl.constexpr, QUANTIZE: tl.constexpr):
    """Writes values to q from place `first` on; `total` plus the sums of what it wrote, where that is int8.

    It needs no clamp: the scale is that of the largest value.
    """
    if QUANTIZE:
        bits = (values.to(tl.float32) * factor + ROUND).to(tl.int32, bitcast=True)
        if PTX:
            values, total = tl.inline_asm_elementwise(
                _LOWEST_BYTES,
                "=&r,=&r,=&r,=&r,=&r,r,r,r,r,r,r,r,r,r,r,r,r",
                [bits, tl.where(finite, -1, 0), total],
                (tl.int8, tl.int32),
                is_pure=True,
                pack=4,
            )
        else:
            rounded = tl.where(finite, bits - BITS_OF_ROUND, 0)
            values, total = rounded.to(tl.int8), total + rounded
        # A maximum of one value: what is behind it Triton would compute twice, once for the sum and once to be written.
        values = tl.max(tl.reshape(values, (values.shape[0], 1)), 1)
    place = first + tl.arange(0, values.shape[0])
    tl.store(q + place, values, mask=place < width)
    return total


@triton.jit
def _largest_magnitude(x, count, stride, TILE: tl.constexpr):
    """max(abs(x[0 .. count - 1])), Inf or NaN where one is."""
    largest = tl.zeros((TILE,), tl.int32)
    for first in range(0, count, TILE):
        index = first + tl.arange(0, TILE)
        values = tl.load(x + index.to(tl.int64) * stride, mask=index < count, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, magnitude_bits(values))
    return tl.max(largest, 0).to(tl.float32, bitcast=True)


@triton.jit
def magnitude_bits(values):
    """abs(values) of float32 as int32, which have the same order; Inf and NaN are above all others."""
    return values.to(tl.int32, bitcast=True) & 0x7FFFFFFF
