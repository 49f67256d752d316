"""One token in one launch: every program makes digits of x for itself, then walks rows of weights.

    registers   q[digit][piece][plane][word]: all of x (digits.py). A thread's words are the same for every row
    a row       pieces of WORDS words; a word -> PER_BYTE words of codes, each times q[..][word] (dp4a), which a thread
                sums over pieces; then the threads of a row add theirs: the shorter a piece, the fewer these are

The first rows are on their way from memory before x is looked at, and the next ones before a row is multiplied; where
multiplying takes long, rows come to L2 AHEAD steps before that. Warps that have whole rows never wait for each other.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from bitcore.kernels.triton.digits import load_token, token_in_digits
from bitcore.kernels.triton.weights import prefetch, unscaled, word_planes

MAX_WORDS = 2048  # of a row times digits: registers hold x
MOST_PIECES = 4
_STORE = "{.reg .pred p; setp.ne.b32 p, $3, 0; @p st.global.%s [$1], $2; mov.b32 $0, 0;}"
_STORE_16, _STORE_32 = tl.constexpr(_STORE % "b16"), tl.constexpr(_STORE % "b32")


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
    row_size,
    feature_stride,
    PER_BYTE: tl.constexpr,
    OFFSET: tl.constexpr,
    ONE_SCALE: tl.constexpr,
    ALIGNED: tl.constexpr,
    PTX: tl.constexpr,
    OVERLAP: tl.constexpr,
    FEATURES: tl.constexpr,
    PIECES: tl.constexpr,
    WORDS: tl.constexpr,
    DIGITS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """y [out_features] of x [in_features] and packed uint8 [out_features, bytes], at most PIECES * WORDS words of four.

    packed begins and ends at multiples of four bytes. row_size: the words of a row where ALIGNED, else its bytes.
    DIGITS: 1 quantizes x, 3 take it as it is.
    """
    first = tl.program_id(0) * FEATURES
    step = tl.num_programs(0) * FEATURES
    row_bytes = row_size * 4 if ALIGNED else row_size
    if OVERLAP:
        for steps in tl.static_range(AHEAD + 1):
            _prefetch_rows(packed, first + steps * step, FEATURES, out_features, row_bytes)
        gdc_wait()
        gdc_launch_dependents()
    values = load_token(x, in_features, feature_stride, PER_BYTE, PIECES, WORDS)
    words = _load_rows(packed, first + tl.arange(0, FEATURES), out_features, row_size, PIECES, WORDS, ALIGNED, PTX)
    if ONE_SCALE:
        scale_of_row = tl.load(weight_scale)

    q, scale = token_in_digits(values, PER_BYTE, PIECES, WORDS, DIGITS, PTX)
    sums_of_q = _sums(q, PER_BYTE, PIECES, WORDS, DIGITS, PTX)

    for base in range(first, out_features, step):
        row = base + tl.arange(0, FEATURES)
        if OVERLAP and AHEAD > 0:
            _prefetch_rows(packed, base + (AHEAD + 1) * step, FEATURES, out_features, row_bytes)
        ahead = _load_rows(packed, row + step, out_features, row_size, PIECES, WORDS, ALIGNED, PTX)
        scale_at = row * 0 if ONE_SCALE else tl.minimum(row, out_features - 1)
        if not ONE_SCALE:
            scale_of_row = tl.load(weight_scale + scale_at)
        offset = OFFSET if zero_point is None else tl.load(zero_point + scale_at).to(tl.int32) + OFFSET
        products = ()
        for _ in tl.static_range(DIGITS):
            products = products + (tl.zeros((FEATURES, WORDS), tl.int32),)
        for piece in tl.static_range(PIECES):
            codes = word_planes(words[piece], PER_BYTE, PTX)
            before, products = products, ()
            for digit in tl.static_range(DIGITS):
                products = products + (_dot(codes, q, digit * PIECES + piece, before[digit], PER_BYTE, PTX),)
        product = tl.zeros((FEATURES,), tl.float32)
        for digit in tl.static_range(DIGITS):
            exact = unscaled(tl.sum(products[digit], 1), PER_BYTE) - offset * sums_of_q[digit]
            product = product * 256.0 + exact.to(tl.float32)
        total = product * (scale * scale_of_row)
        if bias is not None:
            total += tl.load(bias + row, mask=row < out_features, other=0.0).to(tl.float32)
        _store(y + row, total.to(y.dtype.element_ty), row < out_features, PTX)
        words = ahead


@triton.jit
def _sums(
    q, PER_BYTE: tl.constexpr, PIECES: tl.constexpr, WORDS: tl.constexpr, DIGITS: tl.constexpr, PTX: tl.constexpr
):
    """int32, of each digit."""
    ones = ()
    for _ in tl.static_range(PER_BYTE):
        ones = ones + (tl.full((WORDS,), 0x01010101, tl.int32),)
    sums_of_q = ()
    for digit in tl.static_range(DIGITS):
        sums = tl.zeros((WORDS,), tl.int32)
        for piece in tl.static_range(PIECES):
            sums = _dot(ones, q, digit * PIECES + piece, sums, PER_BYTE, PTX)
        sums_of_q = sums_of_q + (tl.sum(sums, 0),)
    return sums_of_q


@triton.jit
def _prefetch_rows(packed, first, FEATURES: tl.constexpr, out_features, row_bytes):
    rows = tl.maximum(tl.minimum(FEATURES, out_features - first), 0)
    prefetch(packed + first.to(tl.int64) * row_bytes, rows * row_bytes)


@triton.jit
def _load_rows(
    packed,
    row,
    out_features,
    row_size,
    PIECES: tl.constexpr,
    WORDS: tl.constexpr,
    ALIGNED: tl.constexpr,
    PTX: tl.constexpr,
):
    """int32 [rows, WORDS] for each piece."""
    words = ()
    for piece in tl.static_range(PIECES):
        word = piece * WORDS + tl.arange(0, WORDS)
        words = words + (_load_words(packed, row, word, out_features, row_size, ALIGNED, PTX),)
    return words


@triton.jit
def _load_words(packed, row, word, out_features, row_size, ALIGNED: tl.constexpr, PTX: tl.constexpr):
    """int32 [rows, words]; what is after the end of a row or the last row is not to be used."""
    packed = packed.to(tl.pointer_type(tl.int32), bitcast=True)
    if ALIGNED:
        at = row.to(tl.int64)[:, None] * row_size + word[None, :]
        return tl.load(packed + at, mask=(row < out_features)[:, None] & (word < row_size)[None, :], other=0)
    else:  # parts of two words, the second one only where the weights have not ended
        begin = row.to(tl.int64) * row_size
        byte = (begin & 3).to(tl.int32)
        bits = byte * 8
        words = tl.where(row < out_features, (row_size + 3) // 4, 0)
        left = tl.minimum(out_features - row, 5) * row_size  # bytes from the row on; of five rows there are enough
        seconds = tl.minimum(words, (byte + left - 1) // 4)
        at = (packed + (begin >> 2))[:, None]
        low = tl.load(at + word[None, :], mask=word[None, :] < words[:, None], other=0)
        high = tl.load(at + (word + 1)[None, :], mask=word[None, :] < seconds[:, None], other=0)
        bits = bits[:, None]
        low, bits = tl.broadcast(low, bits)
        if PTX:
            return tl.inline_asm_elementwise(
                "shf.r.wrap.b32 $0, $1, $2, $3;", "=r,r,r,r", [low, high, bits], tl.int32, is_pure=True, pack=1
            )
        both = (high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)
        return (both >> bits).to(tl.int32)


@triton.jit
def _dot(codes, q, place, total, PER_BYTE: tl.constexpr, PTX: tl.constexpr):
    """`total` plus the products of the words of codes with those of a piece of a digit."""
    for plane in tl.static_range(PER_BYTE):
        total = _add_dot_of_bytes(codes[plane], q[place * PER_BYTE + plane], total, PTX)
    return total


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


@triton.jit
def _store(at, values, inside, PTX: tl.constexpr):
    """Every thread writes the values that it has, several the same one.

    tl.store would first exchange so few of them between the warps, which all wait for that.
    """
    if PTX:
        address = at.to(tl.int64, bitcast=True)
        if values.dtype.primitive_bitwidth == 16:
            operands = [address, values.to(tl.int16, bitcast=True), inside.to(tl.int32)]
            tl.inline_asm_elementwise(_STORE_16, "=r,l,h,r", operands, tl.int32, is_pure=False, pack=1)
        else:
            operands = [address, values.to(tl.int32, bitcast=True), inside.to(tl.int32)]
            tl.inline_asm_elementwise(_STORE_32, "=r,l,r,r", operands, tl.int32, is_pure=False, pack=1)
    else:
        tl.store(at, values, mask=inside)
