"""One token in one launch: every program quantizes x for itself, then walks rows of weights.

    registers   q[plane][word]: all of x as int8, four to a word, in the order of K of weights.py. x is loaded as it
                lies and comes into planes there. A thread's words are the same for every row
    a row       word -> PER_BYTE words of codes, each times q[plane][word] (dp4a), summed over the threads

The first rows are on their way from memory before x is looked at, and the next ones before a row is multiplied.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from bitcore.kernels.triton.arrange import LARGEST, ROUND, SMALLEST, magnitude_bits
from bitcore.kernels.triton.weights import prefetch, unscaled, word_planes

MAX_WORDS = 2048  # of a row: registers hold x


@triton.jit(do_not_specialize=["out_features"])
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
    PARTS: tl.constexpr = 5 if PER_BYTE == 5 else 1  # of x: its planes, where they are no power of two, else all of it
    PLANES: tl.constexpr = PER_BYTE // PARTS
    first = tl.program_id(0) * FEATURES
    step = tl.num_programs(0) * FEATURES
    word = tl.arange(0, WORDS)
    if OVERLAP:
        prefetch(packed + first.to(tl.int64) * row_words, tl.minimum(FEATURES, out_features - first) * row_words * 4)
        gdc_wait()
        gdc_launch_dependents()
    values = ()
    for part in tl.static_range(PARTS):
        values = values + (_load_features(x, part, in_features, feature_stride, PER_BYTE, PLANES, WORDS),)
    words = _load_rows(packed, first + tl.arange(0, FEATURES), word, out_features, row_words)
    if ONE_SCALE:
        scale_of_row = tl.load(weight_scale)

    magnitude = magnitude_bits(values[0])
    for part in tl.static_range(1, PARTS):
        magnitude = tl.maximum(magnitude, magnitude_bits(values[part]))
    largest = tl.max(magnitude).to(tl.float32, bitcast=True)
    finite = largest <= LARGEST
    largest = tl.maximum(largest, SMALLEST)
    inverse = tl.div_rn(1.0, largest) * 127.0
    scale = tl.where(finite, tl.div_rn(largest, 127.0), float("nan"))  # then q does not matter
    q = ()
    for part in tl.static_range(PARTS):
        q = q + _columns(_words_of_q(values[part] * inverse, PLANES, WORDS), PLANES)
    sums = tl.zeros((WORDS,), tl.int32)
    for plane in tl.static_range(PER_BYTE):
        sums = _add_dot_of_bytes(tl.full((WORDS,), 0x01010101, tl.int32), q[plane], sums, PTX)
    sum_of_q = tl.sum(sums, 0)

    for base in range(first, out_features, step):
        row = base + tl.arange(0, FEATURES)
        ahead = _load_rows(packed, row + step, word, out_features, row_words)
        codes = word_planes(words, PER_BYTE, PTX)
        products = tl.zeros((FEATURES, WORDS), tl.int32)
        for plane in tl.static_range(PER_BYTE):
            products = _add_dot_of_bytes(codes[plane], q[plane][None, :], products, PTX)
        scale_at = tl.minimum(row, out_features - 1)
        if not ONE_SCALE:
            scale_of_row = tl.load(weight_scale + scale_at)
        offset = OFFSET if zero_point is None else tl.load(zero_point + scale_at).to(tl.int32) + OFFSET
        product = unscaled(tl.sum(products, 1), PER_BYTE) - offset * sum_of_q
        total = product.to(tl.float32) * (scale * scale_of_row)
        if bias is not None:
            total += tl.load(bias + row, mask=row < out_features, other=0.0).to(tl.float32)
        tl.store(y + row, total.to(y.dtype.element_ty), mask=row < out_features)
        words = ahead


@triton.jit
def _load_rows(packed, row, word, out_features, row_words):
    """int32 [rows, words], 0 after the end of a row and after the last row."""
    at = row.to(tl.int64)[:, None] * row_words + word[None, :]
    return tl.load(packed + at, mask=(row < out_features)[:, None] & (word < row_words)[None, :], other=0)


@triton.jit
def _load_features(
    x, part, in_features, feature_stride, PER_BYTE: tl.constexpr, PLANES: tl.constexpr, WORDS: tl.constexpr
):
    """float32 [WORDS, 4 * PLANES]: features of every byte of every word, all PER_BYTE of them or those of one plane."""
    word, place = tl.arange(0, WORDS)[:, None], tl.arange(0, 4 * PLANES)[None, :]
    if PLANES == PER_BYTE:  # one after the other
        feature = word * (4 * PER_BYTE) + place
    else:
        feature = (word * 4 + place) * PER_BYTE + part
    return tl.load(x + feature.to(tl.int64) * feature_stride, mask=feature < in_features, other=0.0).to(tl.float32)


@triton.jit
def _words_of_q(scaled, PLANES: tl.constexpr, WORDS: tl.constexpr):
    """int32 [WORDS, PLANES]: the rounded values of four bytes' places of a plane, -127..127, in one word.

    The lowest byte of a float32 of this size is its rounded value, and the token's own scale leaves nothing to clamp.
    """
    byte = (scaled + ROUND).to(tl.int32, bitcast=True) & 255
    byte <<= tl.arange(0, 4 * PLANES)[None, :] // PLANES * 8
    return tl.sum(tl.reshape(byte, (WORDS, 4, PLANES)), 1)


@triton.jit
def _columns(table, COLUMNS: tl.constexpr):
    """The 1, 2 or 4 columns of [rows, COLUMNS]."""
    if COLUMNS == 1:
        return (tl.reshape(table, (table.shape[0],)),)
    elif COLUMNS == 2:
        return tl.split(table)
    else:
        even, odd = tl.split(tl.reshape(table, (table.shape[0], 2, 2)))
        even, odd = tl.split(even), tl.split(odd)
        return even[0], odd[0], even[1], odd[1]


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
