"""Activations for the products: int8 with a scale a token, or as they come, in the order of K of weights.py.

A program takes one token and keeps it in registers; a longer one it reads again, from the L1 cache, once it knows the
largest magnitude. per_tensor: the largest magnitudes of all tokens are written first, by a launch of their own.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

SMALLEST = tl.constexpr(1e-5)  # absmax: m is at least this
LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32: anything else is Inf or NaN
ROUND = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it rounds to a whole number, half to even
BITS_OF_ROUND = tl.constexpr(0x4B400000)  # those of ROUND + n, n a whole number, are n more


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
    tokens,
    in_features,
    token_stride,
    feature_stride,
    width,
    PER_BYTE: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    REST: tl.constexpr,
    KEPT: tl.constexpr,
    QUANTIZE: tl.constexpr,
    PER_TENSOR: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """x [tokens, in_features] to q [tokens, width], width a multiple of PER_BYTE * BLOCK, zeros at the end.

    QUANTIZE: q is int8, with scales float32 [tokens] and sums int32 [tokens] of q; 0 where a scale is NaN.
    Otherwise q has x's dtype. SLOTS is PER_BYTE rounded up to a power of two, TILE the bytes' worth of features a step.
    KEPT: all are one step and another one of REST bytes' worth, which may be 0, and stay in registers.
    """
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    x += token * token_stride
    q += token * width
    PARTS: tl.constexpr = 2 if REST > 0 else 1
    kept = ()
    if KEPT:
        kept = (_load_features(x, 0, in_features, feature_stride, PER_BYTE, SLOTS, TILE),)
        if REST > 0:
            kept = kept + (_load_features(x, TILE, in_features, feature_stride, PER_BYTE, SLOTS, REST),)
    inverse, finite = 0.0, True
    if QUANTIZE:
        if PER_TENSOR:
            largest = _largest_magnitude(largest_magnitudes, tokens, 1, 1024)
        elif KEPT:
            largest = _largest_kept(kept, PARTS)
        else:
            largest = _largest_magnitude(x, in_features, feature_stride, TILE * SLOTS)
        finite = largest <= LARGEST
        largest = tl.maximum(largest, SMALLEST)
        inverse = tl.div_rn(1.0, largest) * 127.0
    sum_of_q = tl.zeros((), tl.int32)
    if KEPT:
        for part in tl.static_range(PARTS):
            first = part * TILE
            sum_of_q += _write_features(kept[part], first, inverse, finite, q, width, PER_BYTE, SLOTS, BLOCK, QUANTIZE)
    else:
        for first in range(0, width // PER_BYTE, TILE):
            values = _load_features(x, first, in_features, feature_stride, PER_BYTE, SLOTS, TILE)
            sum_of_q += _write_features(values, first, inverse, finite, q, width, PER_BYTE, SLOTS, BLOCK, QUANTIZE)
    if QUANTIZE:
        tl.store(scales + token, tl.where(finite, tl.div_rn(largest, 127.0), float("nan")))
        tl.store(sums + token, sum_of_q)


@triton.jit
def _largest_kept(kept, PARTS: tl.constexpr):
    bits = tl.max(magnitude_bits(kept[0].to(tl.float32)))
    for part in tl.static_range(1, PARTS):
        bits = tl.maximum(bits, tl.max(magnitude_bits(kept[part].to(tl.float32))))
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _write_features(
    values,
    first,
    inverse,
    finite,
    q,
    width,
    PER_BYTE: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
    QUANTIZE: tl.constexpr,
):
    """Writes values [bytes, SLOTS] to their places in q, from byte `first` on, and gives the sum of what it wrote.

    Quantized they need no clamp: the scale is that of their largest.
    """
    sum_of_q = tl.zeros((), tl.int32)
    if QUANTIZE:
        rounded = (values.to(tl.float32) * inverse + ROUND).to(tl.int32, bitcast=True) - BITS_OF_ROUND
        rounded = tl.where(finite, rounded, 0)
        sum_of_q = tl.sum(rounded)
        values = rounded.to(tl.int8)
    byte = first + tl.arange(0, values.shape[0])
    place = tl.arange(0, SLOTS)[None, :]
    target = (byte // BLOCK * (PER_BYTE * BLOCK) + byte % BLOCK)[:, None] + place * BLOCK
    tl.store(q + target, values, mask=(place < PER_BYTE) & (target < width))
    return sum_of_q


@triton.jit
def _load_features(
    x, first, in_features, feature_stride, PER_BYTE: tl.constexpr, SLOTS: tl.constexpr, TILE: tl.constexpr
):
    """[TILE, SLOTS] of x: PER_BYTE features for every byte from byte `first` on, then zeros up to SLOTS."""
    if PER_BYTE == SLOTS:  # one row, so that as many as possible are loaded at once
        feature = first * PER_BYTE + tl.arange(0, TILE * SLOTS)
        mask = feature < in_features
    else:
        place = tl.arange(0, SLOTS)[None, :]
        feature = (first + tl.arange(0, TILE))[:, None] * PER_BYTE + place
        mask = (place < PER_BYTE) & (feature < in_features)
    values = tl.load(x + feature.to(tl.int64) * feature_stride, mask=mask, other=0.0)
    return tl.reshape(values, (TILE, SLOTS))


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
