"""The product of arranged activations (arrange.py) and packed weights on tensor cores, the weights as left operand.

A program has a tile [FEATURES, TOKENS] of outputs. Its weights go from memory through a pipeline in shared memory to
registers, become codes there (weights.py) and enter the tensor cores from there: they are never stored decoded.

For few tokens a tile has little to do and there are few tiles. So a program walks SLICES parts of K side by side, a
warp or two each, and adds up their sums at the end: all of the GPU keeps reading, and the order of int32 sums is free.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from bitcore.kernels.triton.weights import four_planes, planes, prefetch, ternary_planes, two_planes

TILES_BESIDE = tl.constexpr(8)  # tiles of tokens that are computed together, so that their weights are read once


@triton.jit(do_not_specialize=["tokens", "groups"])
def product_kernel(
    q,
    packed,
    y,
    scales,
    sums,
    weight_scale,
    zero_point,
    bias,
    tokens,
    out_features,
    row_bytes,
    slice_bytes,
    width,
    groups,
    group_bytes,
    PER_BYTE: tl.constexpr,
    BLOCK: tl.constexpr,
    OFFSET: tl.constexpr,
    QUANTIZED: tl.constexpr,
    GRANULARITY: tl.constexpr,
    UNMASKED: tl.constexpr,
    PTX: tl.constexpr,
    OVERLAP: tl.constexpr,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
    SLICES: tl.constexpr,
    BYTES: tl.constexpr,
    STAGES: tl.constexpr,
    BOXES: tl.constexpr,
):
    """y [tokens, out_features] = (q @ (codes - OFFSET - zero_point).T), scaled, + bias; zero_point, bias may be None.

    q [tokens, width], int8 with scales and sums [tokens] where QUANTIZED; packed [out_features, row_bytes];
    weight_scale and zero_point [1], [out_features] or [out_features, groups] by GRANULARITY. UNMASKED: row_bytes is a
    multiple of SLICES * BYTES. per_group: SLICES is 1. BOXES: q, and where there are 2 packed too, are descriptors of
    boxes of a step, [SLICES, rows, ..] where there are slices; UNMASKED, and not base3.
    """
    token_tiles, feature_tiles = tl.cdiv(tokens, TOKENS), tl.cdiv(out_features, FEATURES)
    program = tl.program_id(0)
    token_tile, feature_tile = tl.swizzle2d(
        program // feature_tiles, program % feature_tiles, token_tiles, feature_tiles, TILES_BESIDE
    )
    first_token, first_feature = token_tile * TOKENS, feature_tile * FEATURES
    token, feature = first_token + tl.arange(0, TOKENS), first_feature + tl.arange(0, FEATURES)
    inside = (feature < out_features)[:, None] & (token < tokens)[None, :]
    at = token.to(tl.int64)[None, :] * out_features + feature[:, None]
    token, feature = tl.minimum(token, tokens - 1), tl.minimum(feature, out_features - 1)
    if OVERLAP:
        if SLICES > 1 and BOXES < 2:
            rows = tl.minimum(FEATURES, out_features - first_feature)
            prefetch(packed + first_feature.to(tl.int64) * row_bytes, rows * row_bytes)
        gdc_wait()
        gdc_launch_dependents()
    DTYPE: tl.constexpr = tl.int8 if QUANTIZED else y.dtype.element_ty  # of q
    # Whether weights are made in the type of x, twice as large.
    TERNARY: tl.constexpr = PER_BYTE == 4 and zero_point is None and DTYPE.primitive_bitwidth == 16
    UNIT: tl.constexpr = 0.5 if TERNARY else 1.0
    if GRANULARITY == "per_group":
        total = tl.zeros((FEATURES, TOKENS), tl.float32)
        for group in range(groups):
            scale_at = feature.to(tl.int64) * groups + group
            offset = _offset(zero_point, scale_at, OFFSET)
            first, end = group * group_bytes, tl.minimum((group + 1) * group_bytes, row_bytes)
            product = _product(
                q, packed, first_token, first_feature, first, end,
                tokens, out_features, row_bytes, slice_bytes, width, offset,
                DTYPE, PER_BYTE, BLOCK, TERNARY, not TERNARY, False, PTX,
                TOKENS, FEATURES, SLICES, BYTES, STAGES, BOXES,
            )  # fmt: skip
            total += product.to(tl.float32) * (tl.load(weight_scale + scale_at) * UNIT)[:, None]
        if QUANTIZED:
            total *= tl.load(scales + token)[None, :]
    else:
        scale_at = feature * 0 if GRANULARITY == "per_tensor" else feature
        offset = _offset(zero_point, scale_at, OFFSET)
        product = _product(
            q, packed, first_token, first_feature, 0, slice_bytes,
            tokens, out_features, row_bytes, slice_bytes, width, offset,
            DTYPE, PER_BYTE, BLOCK, TERNARY, not (QUANTIZED or TERNARY), UNMASKED, PTX,
            TOKENS, FEATURES, SLICES, BYTES, STAGES, BOXES,
        )  # fmt: skip
        scale = (tl.load(weight_scale + scale_at) * UNIT)[:, None]
        if QUANTIZED:
            product -= offset.to(tl.int32)[:, None] * tl.load(sums + token)[None, :]
            scale = tl.load(scales + token)[None, :] * scale
        total = product.to(tl.float32) * scale
    if bias is not None:
        total += tl.load(bias + feature)[:, None].to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _offset(zero_point, at, OFFSET: tl.constexpr):
    """int8: what the codes of each feature lie above their values."""
    if zero_point is None:
        return (at * 0 + OFFSET).to(tl.int8)
    else:
        return tl.load(zero_point + at) + OFFSET


@triton.jit
def _product(
    q,
    packed,
    first_token,
    first_feature,
    first_byte,
    end,
    tokens,
    out_features,
    row_bytes,
    slice_bytes,
    width,
    offset,
    DTYPE: tl.constexpr,
    PER_BYTE: tl.constexpr,
    BLOCK: tl.constexpr,
    TERNARY: tl.constexpr,
    CENTERED: tl.constexpr,
    UNMASKED: tl.constexpr,
    PTX: tl.constexpr,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
    SLICES: tl.constexpr,
    BYTES: tl.constexpr,
    STAGES: tl.constexpr,
    BOXES: tl.constexpr,
):
    """[FEATURES, TOKENS]: q times the codes of bytes first_byte..end of every slice.

    CENTERED: codes - offset; TERNARY: twice the weights.
    """
    PLANES: tl.constexpr = 4 if PER_BYTE == 5 else PER_BYTE  # in the first operand
    # A tile that is cut off computes its last row again, rather than to mask every load of it. But a tile of few tokens
    # reads about as much of q as of its weights, and is cut off most times: it reads no tokens that do not exist.
    MASKED: tl.constexpr = not UNMASKED
    TOKENS_MASKED: tl.constexpr = MASKED or TOKENS <= 16
    row = tl.arange(0, SLICES * FEATURES)
    feature = tl.minimum(first_feature + row % FEATURES, out_features - 1).to(tl.int64)
    weight_slice = row // FEATURES * slice_bytes
    byte = tl.arange(0, BYTES)[None, :]
    weight_end = tl.minimum(row_bytes - weight_slice, end)[:, None]
    if BOXES < 2:
        packed += (feature * row_bytes + weight_slice)[:, None] + byte
    row = tl.arange(0, SLICES * TOKENS)
    token = tl.minimum(first_token + row % TOKENS, tokens - 1).to(tl.int64)
    token_slice = row // TOKENS * slice_bytes
    is_token = (first_token + row % TOKENS < tokens)[:, None]
    token_end = tl.where(is_token, tl.minimum(row_bytes - token_slice, end)[:, None], 0)
    k = tl.arange(0, PLANES * BYTES)[None, :]
    byte_of_k = k // (PLANES * BLOCK) * BLOCK + k % BLOCK
    if BOXES == 0:
        q += (token * width + token_slice * PER_BYTE)[:, None]
        if PER_BYTE == 5:  # the fifth plane of every block is the second operand's
            k += k // (4 * BLOCK) * BLOCK
            fifth = q + byte // BLOCK * (5 * BLOCK) + 4 * BLOCK + byte % BLOCK
        q += k

    SUM: tl.constexpr = tl.int32 if DTYPE == tl.int8 else tl.float32
    total = tl.zeros((FEATURES, TOKENS) if SLICES == 1 else (SLICES, FEATURES, TOKENS), SUM)
    for at in tl.range(first_byte, end, BYTES, num_stages=STAGES):
        read = _load(packed, first_feature, at, at + byte < weight_end, SLICES, BOXES > 1, MASKED)
        codes = _decode(read, DTYPE, PER_BYTE, TERNARY, PTX)
        inside = is_token if UNMASKED else at + byte_of_k < token_end
        x = _load(q, first_token, at * PER_BYTE, inside, SLICES, BOXES > 0, TOKENS_MASKED)
        if PER_BYTE == 2:
            weights = two_planes(codes[0], codes[1], BLOCK)
        else:
            weights = four_planes(codes[0], codes[1], codes[2], codes[3], BLOCK)
        total = _multiply(weights, x, total, offset, CENTERED, SLICES)
        if TERNARY and PTX and SLICES == 1:
            total = _ended(total)
        if PER_BYTE == 5:
            inside = is_token if UNMASKED else at + byte < token_end
            x = _load(fifth, first_token, at * PER_BYTE, inside, SLICES, False, TOKENS_MASKED)
            total = _multiply(codes[4], x, total, offset, CENTERED, SLICES)
    return total if SLICES == 1 else tl.sum(total, 0)


@triton.jit
def _load(matrix, first_row, column, inside, SLICES: tl.constexpr, BOXED: tl.constexpr, MASKED: tl.constexpr):
    """[SLICES * rows, columns] of pointers or, BOXED, of a descriptor; MASKED: 0 where it is not `inside`."""
    if BOXED:
        if SLICES == 1:
            return matrix.load([first_row, column])
        else:
            box = matrix.load([0, first_row, column])
            return tl.reshape(box, (SLICES * box.shape[1], box.shape[2]))
    elif MASKED:
        return tl.load(matrix + column, mask=inside, other=0)
    else:
        return tl.load(matrix + column)


@triton.jit
def _decode(packed, DTYPE: tl.constexpr, PER_BYTE: tl.constexpr, TERNARY: tl.constexpr, PTX: tl.constexpr):
    if TERNARY:
        return ternary_planes(packed, DTYPE, PTX)
    else:
        return planes(packed, PER_BYTE, PTX)


@triton.jit
def _multiply(weights, x, total, offset, CENTERED: tl.constexpr, SLICES: tl.constexpr):
    """`total` [.., FEATURES, TOKENS] plus weights [SLICES * FEATURES, k] times x [SLICES * TOKENS, k]."""
    if SLICES == 1:
        if CENTERED:
            weights -= offset[:, None]
    else:
        weights = tl.reshape(weights, (SLICES, weights.shape[0] // SLICES, weights.shape[1]))
        if CENTERED:
            weights -= offset[None, :, None]
        x = tl.reshape(x, (SLICES, x.shape[0] // SLICES, x.shape[1]))
    weights = weights.to(x.dtype)
    x = tl.trans(x) if SLICES == 1 else tl.permute(x, (0, 2, 1))
    return tl.dot(weights, x, total, out_dtype=total.dtype, input_precision="ieee")


@triton.jit
def _ended(total):
    """`total`, once it is there, by an instruction without text that the compiler takes for a use of it.

    Triton would otherwise cut a product of two bytes into steps of 32 bytes of K, and ptxas wait for each.
    """
    return tl.inline_asm_elementwise("", "=f,0", [total], tl.float32, is_pure=True, pack=1)
