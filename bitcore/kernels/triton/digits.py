"""A token as int8 digits in registers, four to a word, in the order of K of weights.py.

Quantized x is one digit. Floating-point x is a whole number of 24 bits in three of them, highest first, as all compiled
kernels take it (docs/numerics.md).
"""

import triton
import triton.language as tl

from bitcore.kernels.triton.arrange import LARGEST, ROUND, factor_and_scale, largest_of

FLOAT_DIGITS = 3  # of floating-point x


@triton.jit
def load_token(x, in_features, feature_stride, PER_BYTE: tl.constexpr, PIECES: tl.constexpr, WORDS: tl.constexpr):
    """x [in_features] of PIECES pieces of WORDS words, by halves of words; it is not looked at yet."""
    values = ()
    for piece in tl.static_range(PIECES):
        for part in tl.static_range(5 if PER_BYTE == 5 else 1):
            for half in tl.static_range(2):
                first = piece * WORDS
                values = values + (_load_half(x, first, part, half, in_features, feature_stride, PER_BYTE, WORDS),)
    return values


@triton.jit
def token_in_digits(
    values, PER_BYTE: tl.constexpr, PIECES: tl.constexpr, WORDS: tl.constexpr, DIGITS: tl.constexpr, PTX: tl.constexpr
):
    """int32 [WORDS] for each plane of each piece of each digit, and the scale of the whole numbers, float32.

    That is NaN where a value is not finite; then the digits do not matter.
    """
    PARTS: tl.constexpr = 5 if PER_BYTE == 5 else 1
    PLANES: tl.constexpr = PER_BYTE // PARTS  # of a part
    largest = largest_of(values, PIECES * PARTS * 2)
    factor, scale = factor_and_scale(largest, DIGITS)
    numbers = ()
    for half in tl.static_range(PIECES * PARTS * 2):
        numbers = numbers + (_unsigned_bytes(values[half] * factor, DIGITS, PTX),)
    q = ()
    for digit in tl.static_range(DIGITS):
        for part in tl.static_range(PIECES * PARTS):
            word = _bytes_of_four(numbers[2 * part], numbers[2 * part + 1], DIGITS - 1 - digit, PLANES, WORDS, PTX)
            if digit > 0:
                word ^= -0x7F7F7F80  # 0x80808080: 0..255 to -128..127
            q = q + _columns(word, PLANES)
    return q, tl.where(largest <= LARGEST, scale, float("nan"))


@triton.jit
def _load_half(x, first, part, half, in_features, feature_stride, PER_BYTE: tl.constexpr, WORDS: tl.constexpr):
    """float32 [WORDS, 2 * planes]: features of half of the bytes of every word, of five planes those of one."""
    PLANES: tl.constexpr = 1 if PER_BYTE == 5 else PER_BYTE
    word, place = first + tl.arange(0, WORDS)[:, None], tl.arange(0, 2 * PLANES)[None, :]
    if PER_BYTE == 5:
        feature = ((word * 2 + half) * 2 + place) * PER_BYTE + part
    else:  # one after the other
        feature = (word * 2 + half) * (2 * PER_BYTE) + place
    return tl.load(x + feature.to(tl.int64) * feature_stride, mask=feature < in_features, other=0.0).to(tl.float32)


@triton.jit
def _unsigned_bytes(scaled, DIGITS: tl.constexpr, PTX: tl.constexpr):
    """int32 whose bytes are the digits of the rounded values, the lower ones of three 128 too large."""
    if DIGITS == 1:
        return (scaled + ROUND).to(tl.int32, bitcast=True)
    elif PTX:
        rounded = tl.inline_asm_elementwise("cvt.rni.s32.f32 $0, $1;", "=r,r", [scaled], tl.int32, is_pure=True, pack=1)
        return rounded + 0x8080
    else:  # the float32 from 2**23 on are whole numbers
        rounded = (tl.abs(scaled) + 8388608.0).to(tl.int32, bitcast=True) - 0x4B000000
        return tl.where(scaled < 0, -rounded, rounded) + 0x8080


@triton.jit
def _bytes_of_four(low, high, BYTE: tl.constexpr, PLANES: tl.constexpr, WORDS: tl.constexpr, PTX: tl.constexpr):
    """int32 [WORDS, PLANES]: byte BYTE of each number of a word's lower bytes' places and of its upper ones'."""
    n0, n1 = tl.split(tl.permute(tl.reshape(low, (WORDS, 2, PLANES)), (0, 2, 1)))
    n2, n3 = tl.split(tl.permute(tl.reshape(high, (WORDS, 2, PLANES)), (0, 2, 1)))
    if PTX:
        pair: tl.constexpr = 0x40 + 0x11 * BYTE
        return tl.inline_asm_elementwise(
            "{.reg .b32 l, h; prmt.b32 l, $1, $2, $5; prmt.b32 h, $3, $4, $5; prmt.b32 $0, l, h, 0x5410;}",
            "=r,r,r,r,r,r",
            [n0, n1, n2, n3, pair],
            tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        n0, n1 = (n0 >> 8 * BYTE) & 255, (n1 >> 8 * BYTE) & 255
        n2, n3 = (n2 >> 8 * BYTE) & 255, (n3 >> 8 * BYTE) & 255
        return n0 | (n1 << 8) | (n2 << 16) | (n3 << 24)


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
