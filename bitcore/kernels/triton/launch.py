"""From tensors to Triton launches: one for a single token, else one that arranges x and one that multiplies."""

from functools import cache
from typing import NamedTuple, TypedDict

import torch
import triton
from torch import Tensor

from bitcore.kernels.triton import INTERPRETED
from bitcore.kernels.triton.arrange import arrange_kernel, largest_magnitudes_kernel
from bitcore.kernels.triton.gemv import MAX_WORDS, gemv_kernel
from bitcore.kernels.triton.product import product_kernel
from bitcore.kernels.triton.tiles import (
    Activations,
    GemvTile,
    Tile,
    choose_tile,
    default_tile,
    gpu_name,
    token_class,
)
from bitcore.packing import WEIGHTS_PER_BYTE

MAX_BLOCK = 32  # bytes, see weights.py
MOST_KEPT = 16384  # features of a token that stay in registers
STEP = 8192  # features of a step where they do not
FEW_TOKENS = 128  # programs that hardly share multiprocessors: then each takes more warps
PTX = not INTERPRETED and torch.version.hip is None
OPTIONS = {"enable_fp_fusion": False}  # the reference has no fused multiply-adds


class Call(NamedTuple):
    """What is asked: x [tokens, K], contiguous weights, y [.., N] to be written.

    activation_granularity is None for floating-point activations, group_size 0 where no scale is a group's.
    """

    x: Tensor
    packed: Tensor
    weight_scale: Tensor
    zero_point: Tensor | None
    bias: Tensor | None
    y: Tensor
    storage_format: str
    activation_granularity: str | None
    group_size: int

    @property
    def per_byte(self) -> int:
        """Weights of a byte."""
        return WEIGHTS_PER_BYTE[self.storage_format]

    @property
    def offset(self) -> int:
        """The code of zero."""
        return 8 if self.storage_format == "int4" else 1

    @property
    def activations(self) -> Activations:
        """How tile tables call what is multiplied."""
        if self.activation_granularity is not None:
            return "int8"
        return "32-bit" if self.x.dtype == torch.float32 else "16-bit"

    @property
    def one_launch(self) -> bool:
        """Whether gemv.py can serve."""
        row_bytes = self.packed.shape[1]
        return (
            self.x.shape[0] == 1
            and self.activation_granularity is not None
            and self.group_size == 0
            and row_bytes % 4 == 0
            and row_bytes <= 4 * MAX_WORDS
            and self.packed.data_ptr() % 4 == 0
        )


def launch(call: Call, tile: Tile | GemvTile | None = None) -> None:
    """Computes call.y. `tile` for measurements: otherwise tiles.py chooses."""
    tile = tile or _tile_of(call)
    if isinstance(tile, GemvTile):
        _launch_gemv(call, tile)
    else:
        _launch_product(call, tile)


def _tile_of(call: Call) -> Tile | GemvTile:
    limit = token_class(call.x.shape[0])
    if call.group_size:
        return default_tile(call.activations, limit, slices=1)
    out_features, in_features = call.packed.shape[0], call.x.shape[1]
    return choose_tile(
        gpu_name(call.x.device),
        call.storage_format,
        call.activations,
        limit,
        out_features,
        in_features,
        call.one_launch,
    )


def _launch_product(call: Call, tile: Tile) -> None:
    tokens = call.x.shape[0]
    out_features, row_bytes = call.packed.shape
    group_bytes = call.group_size // call.per_byte
    block = min(MAX_BLOCK, group_bytes & -group_bytes) if group_bytes else MAX_BLOCK  # divides a group
    overlap = _can_overlap(call.x.device)
    q, scales, sums = arrange(call.x, call.per_byte, block, call.activation_granularity, overlap=overlap)
    one_scale = call.weight_scale.numel() == 1
    programs = triton.cdiv(tokens, tile.tokens) * triton.cdiv(out_features, tile.features)
    product_kernel[(programs,)](
        q,
        call.packed,
        call.y,
        scales,
        sums,
        call.weight_scale,
        call.zero_point,
        call.bias,
        tokens,
        out_features,
        row_bytes,
        triton.cdiv(row_bytes, tile.slices * tile.bytes) * tile.bytes,
        q.shape[1],
        call.weight_scale.shape[-1],
        group_bytes,
        PER_BYTE=call.per_byte,
        BLOCK=block,
        OFFSET=call.offset,
        QUANTIZED=call.activation_granularity is not None,
        GRANULARITY="per_group" if group_bytes else "per_tensor" if one_scale else "per_channel",
        UNMASKED=not group_bytes and row_bytes % (tile.slices * tile.bytes) == 0,
        PTX=PTX,
        OVERLAP=overlap,
        TOKENS=tile.tokens,
        FEATURES=tile.features,
        SLICES=tile.slices,
        BYTES=tile.bytes,
        STAGES=tile.stages,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **_launch_options(overlap),
        **OPTIONS,
    )


def arrange(
    x: Tensor, per_byte: int, block: int, granularity: str | None, *, overlap: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """arrange.py's q [tokens, width], scales float32 and sums int32 [tokens] of x [tokens, K].

    width is K rounded up to a multiple of per_byte * block. granularity None: q has x's dtype, no scales and sums.
    """
    tokens, in_features = x.shape
    slots = triton.next_power_of_2(per_byte)
    row_bytes = triton.cdiv(in_features, per_byte * block) * block
    if granularity is None:
        q, scales, sums = x.new_empty(tokens, row_bytes * per_byte), None, None
    else:
        q = x.new_empty(tokens, row_bytes * per_byte, dtype=torch.int8)
        scales, sums = x.new_empty(tokens, dtype=torch.float32), x.new_empty(tokens, dtype=torch.int32)
    largest = None
    if granularity == "per_tensor":
        largest = x.new_empty(tokens, dtype=torch.float32)
        tile = min(triton.next_power_of_2(in_features), STEP)
        largest_magnitudes_kernel[(tokens,)](x, largest, in_features, *x.stride(), TILE=tile, num_warps=8, **OPTIONS)
    arrange_kernel[(tokens,)](
        x,
        q,
        scales,
        sums,
        largest,
        tokens,
        in_features,
        *x.stride(),
        q.shape[1],
        PER_BYTE=per_byte,
        SLOTS=slots,
        BLOCK=block,
        QUANTIZE=granularity is not None,
        PER_TENSOR=granularity == "per_tensor",
        OVERLAP=overlap,
        **_steps(tokens, row_bytes, slots),
        **_launch_options(overlap),
        **OPTIONS,
    )
    return q, scales, sums


class Steps(TypedDict):
    """What arrange_kernel calls so, and its warps."""

    TILE: int
    REST: int
    KEPT: bool
    num_warps: int


def _steps(tokens: int, row_bytes: int, slots: int) -> Steps:
    """How tokens of `row_bytes` bytes' worth of features are read.

    Of many tokens in two powers of two of them, which waste fewer instructions than one; of few in one, whose threads
    wait for each other less often.
    """
    tile, rest, features_of_thread = triton.next_power_of_2(row_bytes), 0, 16
    if tokens > FEW_TOKENS:
        features_of_thread = 32
        more = triton.next_power_of_2(max(1, row_bytes - tile // 2))
        if more < tile // 2:
            tile, rest = tile // 2, more
    features = (tile + rest) * slots
    if features > MOST_KEPT:
        return Steps(TILE=STEP // slots, REST=0, KEPT=False, num_warps=8)
    warps = triton.next_power_of_2(triton.cdiv(features, 32 * features_of_thread))
    return Steps(TILE=tile, REST=rest, KEPT=True, num_warps=min(16, max(4, warps)))


def _launch_gemv(call: Call, tile: GemvTile) -> None:
    out_features, row_bytes = call.packed.shape
    overlap = _can_overlap(call.x.device)
    programs = min(triton.cdiv(out_features, tile.features), tile.programs * _processors(call.x.device))
    gemv_kernel[(programs,)](
        call.x,
        call.packed.view(torch.int32),
        call.y,
        call.weight_scale,
        call.zero_point,
        call.bias,
        out_features,
        call.x.shape[1],
        row_bytes // 4,
        call.x.stride(1),
        PER_BYTE=call.per_byte,
        OFFSET=call.offset,
        ONE_SCALE=call.weight_scale.numel() == 1,
        PTX=PTX,
        OVERLAP=overlap,
        FEATURES=tile.features,
        WORDS=triton.next_power_of_2(row_bytes // 4),
        num_warps=tile.warps,
        **_launch_options(overlap),
        **OPTIONS,
    )


def _launch_options(overlap: bool) -> dict[str, bool]:
    return {"launch_pdl": True} if overlap else {}


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@cache
def _can_overlap(device: torch.device) -> bool:
    """Whether a kernel may start before the one in front of it has ended (programmatic dependent launch)."""
    return PTX and torch.cuda.get_device_capability(device) >= (9, 0)
