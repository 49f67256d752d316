"""Packed weights in registers: bytes of one row to the codes that they hold, in the order of the activations.

The codes of a byte go to planes: plane j holds the j-th code of every byte, so a shift and a mask of a whole register
make it. A tensor core does not care about the order of K as long as both sides agree. The activations (arrange.py)
therefore lie in blocks of BLOCK bytes' weights, inside a block plane after plane:

    bytes         b0        b1        b2 ...            codes of b0 are u0 u1 u2 u3, of b1 u4 u5 u6 u7, ...
    order of K    u0 u4 u8 ... | u1 u5 u9 ... | u2 u6 u10 ... | u3 u7 u11 ...        next block ...

2bit has 4 planes, int4 2. base3 has 5, no power of two: 4 of them are one operand of the tensor cores, the fifth
another.
Codes are the unsigned ones of bitcore.packing: 0..2 with 1 for zero, 0..15 with 8 for zero.
"""

import triton
import triton.language as tl

# Four bytes a register on NVIDIA: 2 instructions for 4 codes of 2bit and int4, 5 of base3.
_TWO_BIT = tl.constexpr(
    "{.reg .b32 s; and.b32 $0, $4, 0x03030303; shr.b32 s, $4, 2; and.b32 $1, s, 0x03030303; "
    "shr.b32 s, $4, 4; and.b32 $2, s, 0x03030303; shr.b32 s, $4, 6; and.b32 $3, s, 0x03030303;}"
)
# Less one modulo 4 a code is the top of a weight of two bytes: -2, 0 and 2 are 0xc000, 0 and 0x4000 in bfloat16 and in
# float16. The codes of four bytes in 18 instructions: bytes to the tops of halves, then a shift and a mask for two.
_TERNARY = tl.constexpr(
    "{.reg .b32 v, l, h; shl.b32 v, $8, 1; lop3.b32 v, $8, v, 0xaaaaaaaa, 0x07; "
    "prmt.b32 l, v, 0, 0x1404; prmt.b32 h, v, 0, 0x3424; "
    + "".join(
        f"shl.b32 ${2 * plane}, l, {6 - 2 * plane}; and.b32 ${2 * plane}, ${2 * plane}, 0xc000c000; "
        f"shl.b32 ${2 * plane + 1}, h, {6 - 2 * plane}; and.b32 ${2 * plane + 1}, ${2 * plane + 1}, 0xc000c000; "
        for plane in range(4)
    )
    + "}"
)
_INT4 = tl.constexpr("{.reg .b32 s; and.b32 $0, $2, 0x0f0f0f0f; shr.b32 s, $2, 4; and.b32 $1, s, 0x0f0f0f0f;}")
# base3: a digit is the high byte of rest * 3, so even and odd bytes go to halves of 16 bits.
_DIGIT = "mul.lo.u32 e, e, 3; mul.lo.u32 o, o, 3; prmt.b32 ${}, e, o, 0x7351; "
_REST = "and.b32 e, e, 0x00ff00ff; and.b32 o, o, 0x00ff00ff; "
_BASE3 = tl.constexpr(
    "{.reg .b32 e, o; and.b32 e, $5, 0x00ff00ff; shr.b32 o, $5, 8; and.b32 o, o, 0x00ff00ff; "
    + _REST.join(_DIGIT.format(digit) for digit in range(5))
    + "}"
)
_PREFETCH = tl.constexpr(
    "{.reg .pred p; .reg .b32 t; mov.u32 t, %tid.x; setp.eq.u32 p, t, 0; setp.ne.and.u32 p, $2, 0, p; "
    "@p cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0;}"
)


@triton.jit
def planes(packed, PER_BYTE: tl.constexpr, PTX: tl.constexpr):
    """The codes of `packed`, uint8 of any shape: PER_BYTE int8 tensors of its shape. PTX: for NVIDIA GPUs."""
    if PER_BYTE == 4:
        if PTX:
            return tl.inline_asm_elementwise(
                _TWO_BIT, "=&r,=&r,=&r,=&r,r", [packed], (tl.int8, tl.int8, tl.int8, tl.int8), is_pure=True, pack=4
            )
        return (
            (packed & 3).to(tl.int8),
            ((packed >> 2) & 3).to(tl.int8),
            ((packed >> 4) & 3).to(tl.int8),
            (packed >> 6).to(tl.int8),
        )
    elif PER_BYTE == 2:
        if PTX:
            return tl.inline_asm_elementwise(_INT4, "=&r,=&r,r", [packed], (tl.int8, tl.int8), is_pure=True, pack=4)
        return (packed & 15).to(tl.int8), (packed >> 4).to(tl.int8)
    else:
        if PTX:
            return tl.inline_asm_elementwise(
                _BASE3,
                "=&r,=&r,=&r,=&r,=&r,r",
                [packed],
                (tl.int8, tl.int8, tl.int8, tl.int8, tl.int8),
                is_pure=True,
                pack=4,
            )
        rest0 = packed.to(tl.int16) * 3
        rest1 = (rest0 & 255) * 3
        rest2 = (rest1 & 255) * 3
        rest3 = (rest2 & 255) * 3
        rest4 = (rest3 & 255) * 3
        return (
            (rest0 >> 8).to(tl.int8),
            (rest1 >> 8).to(tl.int8),
            (rest2 >> 8).to(tl.int8),
            (rest3 >> 8).to(tl.int8),
            (rest4 >> 8).to(tl.int8),
        )


@triton.jit
def ternary_planes(packed, DTYPE: tl.constexpr, PTX: tl.constexpr):
    """Twice the weights of `packed`, uint8 of any shape in 2bit: 4 tensors of its shape, of DTYPE (16 bits)."""
    if PTX:
        p0, p1, p2, p3 = tl.inline_asm_elementwise(
            _TERNARY,
            "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r",
            [packed],
            (tl.int16, tl.int16, tl.int16, tl.int16),
            is_pure=True,
            pack=4,
        )
    else:
        codes = packed.to(tl.int16)
        p0, p1, p2, p3 = (codes & 3) - 1, (codes >> 2 & 3) - 1, (codes >> 4 & 3) - 1, (codes >> 6) - 1
        p0, p1, p2, p3 = p0 << 14, p1 << 14, p2 << 14, p3 << 14
    return (
        p0.to(DTYPE, bitcast=True),
        p1.to(DTYPE, bitcast=True),
        p2.to(DTYPE, bitcast=True),
        p3.to(DTYPE, bitcast=True),
    )


@triton.jit
def word_planes(words, PER_BYTE: tl.constexpr, PTX: tl.constexpr):
    """The codes of int32 `words` of four packed bytes each: PER_BYTE int32 tensors of four unsigned codes.

    Codes of 2bit are 64 times as large and those of int4 16 times: in the highest bits of their bytes, where shifts to
    the left bring them, which NVIDIA's GPUs do with their multipliers.
    """
    if PER_BYTE == 4:
        top = -0x3F3F3F40  # 0xC0C0C0C0
        return ((words << 6) & top, (words << 4) & top, (words << 2) & top, words & top)
    elif PER_BYTE == 2:
        top = -0x0F0F0F10  # 0xF0F0F0F0
        return ((words << 4) & top, words & top)
    elif PTX:
        return tl.inline_asm_elementwise(
            _BASE3,
            "=&r,=&r,=&r,=&r,=&r,r",
            [words],
            (tl.int32, tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
    else:
        even, odd = words & 0x00FF00FF, (words >> 8) & 0x00FF00FF
        even0, odd0 = even * 3, odd * 3
        even1, odd1 = (even0 & 0x00FF00FF) * 3, (odd0 & 0x00FF00FF) * 3
        even2, odd2 = (even1 & 0x00FF00FF) * 3, (odd1 & 0x00FF00FF) * 3
        even3, odd3 = (even2 & 0x00FF00FF) * 3, (odd2 & 0x00FF00FF) * 3
        even4, odd4 = (even3 & 0x00FF00FF) * 3, (odd3 & 0x00FF00FF) * 3
        return (
            ((even0 >> 8) & 0x00FF00FF) | (odd0 & 0x03000300),
            ((even1 >> 8) & 0x00FF00FF) | (odd1 & 0x03000300),
            ((even2 >> 8) & 0x00FF00FF) | (odd2 & 0x03000300),
            ((even3 >> 8) & 0x00FF00FF) | (odd3 & 0x03000300),
            ((even4 >> 8) & 0x00FF00FF) | (odd4 & 0x03000300),
        )


@triton.jit
def unscaled(sums, PER_BYTE: tl.constexpr):
    """Sums of products with the codes of word_planes, as if these had been in the lowest bits."""
    if PER_BYTE == 4:
        return sums >> 6
    elif PER_BYTE == 2:
        return sums >> 4
    else:
        return sums


@triton.jit
def prefetch(begin, size):
    """Brings `size` bytes from the pointer `begin` to L2 (sm_90): weights that may be asked for but not read yet.

    One thread of the program asks for all of them, in whole pieces of 16 bytes.
    """
    address, size = begin.to(tl.int64, bitcast=True) & -16, size & -16
    tl.inline_asm_elementwise(_PREFETCH, "=r,l,r", [address, size], tl.int32, is_pure=False, pack=1)


@triton.jit
def four_planes(p0, p1, p2, p3, BLOCK: tl.constexpr):
    """Four planes [rows, bytes] as one operand [rows, 4 * bytes], plane after plane in every block."""
    ROWS: tl.constexpr = p0.shape[0]
    BYTES: tl.constexpr = p0.shape[1]
    joined = tl.join(tl.join(p0, p2), tl.join(p1, p3))  # [rows, bytes, 2, 2] with plane = 2 * third + fourth index
    blocks = tl.reshape(joined, (ROWS, BYTES // BLOCK, BLOCK, 4))
    return tl.reshape(tl.permute(blocks, (0, 1, 3, 2)), (ROWS, 4 * BYTES))


@triton.jit
def two_planes(p0, p1, BLOCK: tl.constexpr):
    """Two planes [rows, bytes] as one operand [rows, 2 * bytes]."""
    ROWS: tl.constexpr = p0.shape[0]
    BYTES: tl.constexpr = p0.shape[1]
    blocks = tl.reshape(tl.join(p0, p1), (ROWS, BYTES // BLOCK, BLOCK, 2))
    return tl.reshape(tl.permute(blocks, (0, 1, 3, 2)), (ROWS, 2 * BYTES))
