"""One token in one launch: every program quantizes x for itself, then walks rows of weights.

    registers   q[plane][word]: all of x as int8, four to a word, in the order of K of weights.py. A thread's words are
                the same for every row
    a row       word -> PER_BYTE words of codes, each times q[plane][word] (dp4a), summed over the threads

The first rows are on their way from memory before x is looked at, and the next ones before a row is multiplied.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from bitcore.kernels.triton.arrange import LARGEST, ROUND, SMALLEST
from bitcore.kernels.triton.weights import prefetch, unscaled, word_planes

MAX_WORDS = 2048  # of a row: registers hold x


@triton.jit(do_not_specialize=["out_features", "in_features"])
def gemv_kernel(
    x,
    packed,
    y,
    weight_scale,
    zero_point,
    bias,
    out_features,
    in_features,
    row_words,
    feature_stride,
    PER_BYTE: tl.constexpr,
    OFFSET: tl.constexpr,
    ONE_SCALE: tl.constexpr,
    PTX: tl.constexpr,
    OVERLAP: tl.constexpr,
    FEATURES: tl.constexpr,
    WORDS: tl.constexpr,
):
    """y [out_features] of x [in_features] and packed int32 [out_features, row_words], row_words <= WORDS."""
    first = tl.program_id(0) * FEATURES
    step = tl.num_programs(0) * FEATURES
    word = tl.arange(0, WORDS)
    if OVERLAP:
        first_rows = tl.minimum(first + tl.arange(0, FEATURES), out_features - 1).to(tl.int64)
        prefetch(packed + first_rows * row_words, row_words * 4)
        gdc_wait()
        gdc_launch_dependents()
    words = _load_rows(packed, first + tl.arange(0, FEATURES), word, out_features, row_words)

    of_byte = (word[:, None] * 4 + tl.arange(0, 4)[None, :]) * PER_BYTE
    largest = 0.0
    values = ()
    for plane in tl.static_range(PER_BYTE):
        feature = of_byte + plane
        value = tl.load(x + feature.to(tl.int64) * feature_stride, mask=feature < in_features, other=0.0)
        value = value.to(tl.float32)
        magnitude = tl.abs(value)
        magnitude = tl.where(magnitude <= LARGEST, magnitude, float("inf"))
        largest = tl.maximum(largest, tl.max(tl.max(magnitude, 1), 0))
        values = values + (value,)
    finite = largest <= LARGEST
    largest = tl.maximum(largest, SMALLEST)
    inverse = tl.div_rn(1.0, largest) * 127.0
    scale = tl.where(finite, tl.div_rn(largest, 127.0), float("nan"))
    sum_of_q = 0
    q = ()
    for plane in tl.static_range(PER_BYTE):
        rounded = tl.clamp((values[plane] * inverse + ROUND) - ROUND, -128.0, 127.0)
        rounded = tl.where(finite, rounded, 0.0).to(tl.int32)
        sum_of_q += tl.sum(tl.sum(rounded, 1), 0)
        q = q + (tl.sum((rounded & 255) << (tl.arange(0, 4) * 8)[None, :], 1),)

    for base in range(first, out_features, step):
        row = base + tl.arange(0, FEATURES)
        ahead = _load_rows(packed, row + step, word, out_features, row_words)
        codes = word_planes(words, PER_BYTE, PTX)
        products = tl.zeros((FEATURES, WORDS), tl.int32)
        for plane in tl.static_range(PER_BYTE):
            products = _add_dot_of_bytes(codes[plane], q[plane][None, :], products, PTX)
        scale_at = tl.minimum(row, out_features - 1)
        if ONE_SCALE:
            scale_at *= 0
        offset = OFFSET if zero_point is None else tl.load(zero_point + scale_at).to(tl.int32) + OFFSET
        product = unscaled(tl.sum(products, 1), PER_BYTE) - offset * sum_of_q
        total = product.to(tl.float32) * (scale * tl.load(weight_scale + scale_at))
        if bias is not None:
            total += tl.load(bias + row, mask=row < out_features, other=0.0).to(tl.float32)
        tl.store(y + row, total.to(y.dtype.element_ty), mask=row < out_features)
        words = ahead


@triton.jit
def _load_rows(packed, row, word, out_features, row_words):
    """int32 [rows, words], 0 after the end of a row; rows after the last one are the last one."""
    at = tl.minimum(row, out_features - 1).to(tl.int64)[:, None] * row_words + word[None, :]
    return tl.load(packed + at, mask=(word < row_words)[None, :], other=0)


@triton.jit
def _add_dot_of_bytes(codes, q, total, PTX: tl.constexpr):
    """`total` plus the products of the four unsigned bytes of `codes` and the four signed ones of `q`, int32."""
    codes, q = tl.broadcast(codes, q)
    if PTX:
        return tl.inline_asm_elementwise(
            "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [codes, q, total], tl.int32, is_pure=True, pack=1
        )
    else:
        for byte in tl.static_range(4):
            total += ((codes >> (8 * byte)) & 255) * ((q << (24 - 8 * byte)) >> 24)
        return total
