"""Activations for the products: int8 with a scale a token, or as they come, in the order of K of weights.py.

A program takes one token. per_token: it reads it twice, the second time from its L1 cache, for the largest magnitude
and for the values. per_tensor: the largest magnitudes of all tokens are written first, by a launch of their own.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

SMALLEST = tl.constexpr(1e-5)  # absmax: m is at least this
LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32: anything else is Inf or NaN
ROUND = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it rounds to a whole number, half to even


@triton.jit(do_not_specialize=["in_features"])
def largest_magnitudes_kernel(x, largest, in_features, token_stride, feature_stride, TILE: tl.constexpr):
    """largest[token] = max(abs(x[token])), Inf where the token holds NaN or Inf."""
    token = tl.program_id(0).to(tl.int64)
    tl.store(largest + token, _largest_magnitude(x + token * token_stride, in_features, feature_stride, TILE))


@triton.jit(do_not_specialize=["tokens", "in_features"])
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
    QUANTIZE: tl.constexpr,
    PER_TENSOR: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """x [tokens, in_features] to q [tokens, width], width a multiple of PER_BYTE * BLOCK, zeros at the end.

    QUANTIZE: q is int8, with scales float32 [tokens] and sums int32 [tokens] of q. Otherwise q has x's dtype.
    SLOTS is PER_BYTE rounded up to a power of two, TILE the bytes' worth of features a step.
    """
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    x += token * token_stride
    q += token * width
    if QUANTIZE:
        if PER_TENSOR:
            largest = _largest_magnitude(largest_magnitudes, tokens, 1, 1024)
        else:
            largest = _largest_magnitude(x, in_features, feature_stride, TILE * SLOTS)
        finite = largest <= LARGEST
        largest = tl.maximum(largest, SMALLEST)
        inverse = tl.div_rn(1.0, largest) * 127.0
        sum_of_q = tl.zeros((), tl.int32)
    byte = tl.arange(0, TILE)
    place = tl.arange(0, SLOTS)[None, :]
    for first in range(0, width // PER_BYTE, TILE):
        at = first + byte
        feature = at[:, None] * PER_BYTE + place
        values = tl.load(
            x + feature.to(tl.int64) * feature_stride, mask=(place < PER_BYTE) & (feature < in_features), other=0.0
        )
        if QUANTIZE:
            scaled = values.to(tl.float32) * inverse
            rounded = tl.clamp((scaled + ROUND) - ROUND, -128.0, 127.0)
            rounded = tl.where(finite, rounded, 0.0).to(tl.int32)
            sum_of_q += tl.sum(rounded)
            values = rounded.to(tl.int8)
        target = (at // BLOCK * (PER_BYTE * BLOCK) + at % BLOCK)[:, None] + place * BLOCK
        tl.store(q + target, values, mask=(place < PER_BYTE) & (target < width))
    if QUANTIZE:
        tl.store(scales + token, tl.where(finite, tl.div_rn(largest, 127.0), float("nan")))
        tl.store(sums + token, sum_of_q)


@triton.jit
def _largest_magnitude(x, count, stride, TILE: tl.constexpr):
    """max(abs(x[0 .. count - 1])), Inf where one is NaN or Inf."""
    largest = tl.zeros((TILE,), tl.float32)
    for first in range(0, count, TILE):
        index = first + tl.arange(0, TILE)
        magnitude = tl.abs(tl.load(x + index.to(tl.int64) * stride, mask=index < count, other=0.0).to(tl.float32))
        largest = tl.maximum(largest, tl.where(magnitude <= LARGEST, magnitude, float("inf")))
    return tl.max(largest, 0)
