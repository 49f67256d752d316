"""From tensors to Triton launches: one for a single token, else one that arranges x and one that multiplies."""

from functools import cache, lru_cache
from typing import NamedTuple, TypedDict

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from bitcore.kernels.triton import INTERPRETED
from bitcore.kernels.triton.arrange import arrange_kernel, largest_magnitudes_kernel
from bitcore.kernels.triton.digits import FLOAT_DIGITS
from bitcore.kernels.triton.gemv import MAX_WORDS, MOST_PIECES, gemv_kernel
from bitcore.kernels.triton.product import product_kernel
from bitcore.kernels.triton.tiles import Activations, GemvTile, Tile, choose_tile, default_tile, gpu_name, token_class
from bitcore.packing import WEIGHTS_PER_BYTE

MAX_BLOCK = 32  # bytes, see weights.py
MOST_KEPT = 16384  # places of a token in q that stay in registers
MOST_NORMALIZED = MOST_KEPT - 5 * MAX_BLOCK  # features, which padding makes more places of
STEP = 8192  # places of a step where they do not
PLACES_OF_WARP = 512  # at a time: 16 of a thread are written at once
FEW_TOKENS = 256  # whose programs hardly share multiprocessors
PTX = not INTERPRETED and torch.version.hip is None
OPTIONS = {"enable_fp_fusion": False}  # the reference has no fused multiply-adds

cdiv, next_power_of_2 = map(lru_cache(maxsize=4096), (triton.cdiv, triton.next_power_of_2))  # Triton's take 2 µs a call


class Norm(NamedTuple):
    """An RMSNorm of x: weight [K] of its dtype, contiguous."""

    weight: Tensor
    eps: float


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
    norm: Norm | None = None

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
    def digits(self) -> int:
        """Of x, in gemv.py."""
        return FLOAT_DIGITS if self.activation_granularity is None else 1

    @property
    def one_launch(self) -> bool:
        """Whether gemv.py can serve."""
        words = cdiv(self.packed.shape[1], 4)
        return (
            self.x.shape[0] == 1
            and self.group_size == 0
            and 0 < words * self.digits <= MAX_WORDS
            and self.packed.data_ptr() % 4 == self.packed.numel() % 4 == 0
        )


def launch(call: Call, tile: Tile | GemvTile | None = None) -> None:
    """Computes call.y. `tile` for measurements: otherwise tiles.py chooses."""
    tile = tile or _tile_of(call)
    if call.norm is not None and (isinstance(tile, GemvTile) or call.activation_granularity == "per_tensor"):
        call = call._replace(x=normalize(call.x, call.norm), norm=None)
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
    q, scales, sums = arrange(call.x, call.per_byte, block, call.activation_granularity, call.norm, overlap=overlap)
    one_scale = call.weight_scale.numel() == 1
    unmasked = not group_bytes and row_bytes % (tile.slices * tile.bytes) == 0
    boxes = tile.boxes if unmasked and call.per_byte != 5 and _can_read_boxes(call.x.device) else 0
    if row_bytes % 16 or call.packed.data_ptr() % 16:
        boxes = min(boxes, 1)
    programs = cdiv(tokens, tile.tokens) * cdiv(out_features, tile.features)
    product_kernel[(programs,)](
        _boxes(q, tile.slices, tile.tokens, tile.bytes * call.per_byte) if boxes > 0 else q,
        _boxes(call.packed, tile.slices, tile.features, tile.bytes) if boxes > 1 else call.packed,
        call.y,
        scales,
        sums,
        call.weight_scale,
        call.zero_point,
        call.bias,
        tokens,
        out_features,
        row_bytes,
        cdiv(row_bytes, tile.slices * tile.bytes) * tile.bytes,
        q.shape[1],
        call.weight_scale.shape[-1],
        group_bytes,
        PER_BYTE=call.per_byte,
        BLOCK=block,
        OFFSET=call.offset,
        QUANTIZED=call.activation_granularity is not None,
        GRANULARITY="per_group" if group_bytes else "per_tensor" if one_scale else "per_channel",
        UNMASKED=unmasked,
        BOXES=boxes,
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


def _boxes(matrix: Tensor, slices: int, rows: int, columns: int) -> TensorDescriptor:
    """Boxes [rows, columns] of a matrix; of several slices one box of each, [slices, rows, columns]."""
    if slices == 1:
        return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns])
    parts = matrix.view(matrix.shape[0], slices, -1).transpose(0, 1)
    return TensorDescriptor(matrix, list(parts.shape), list(parts.stride()), [slices, rows, columns])


def normalize(x: Tensor, norm: Norm) -> Tensor:
    """The RMSNorm of x [tokens, K], in a plane of its own: in the order of x."""
    return arrange(x, 1, 1, None, norm, overlap=_can_overlap(x.device))[0]


def arrange(
    x: Tensor, per_byte: int, block: int, granularity: str | None, norm: Norm | None = None, *, overlap: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """arrange.py's q [tokens, width], scales float32 and sums int32 [tokens] of x [tokens, K].

    norm: of up to MOST_KEPT places, and not with per_tensor granularity. width is K rounded up to a multiple of
    per_byte * block. granularity None: q has x's dtype, no scales and sums.
    """
    tokens, in_features = x.shape
    width = cdiv(in_features, per_byte * block) * per_byte * block
    if granularity is None:
        q, scales, sums = x.new_empty(tokens, width), None, None
    else:
        q = x.new_empty(tokens, width, dtype=torch.int8)
        scales, sums = x.new_empty(tokens, dtype=torch.float32), x.new_empty(tokens, dtype=torch.int32)
    largest = None
    if granularity == "per_tensor":
        largest = x.new_empty(tokens, dtype=torch.float32)
        tile = min(next_power_of_2(in_features), STEP)
        largest_magnitudes_kernel[(tokens,)](x, largest, in_features, *x.stride(), TILE=tile, num_warps=8, **OPTIONS)
    arrange_kernel[(tokens,)](
        x,
        q,
        scales,
        sums,
        largest,
        None if norm is None else norm.weight,
        0.0 if norm is None else norm.eps,
        tokens,
        in_features,
        *x.stride(),
        width,
        PER_BYTE=per_byte,
        BLOCK=block,
        QUANTIZE=granularity is not None,
        PER_TENSOR=granularity == "per_tensor",
        PTX=PTX,
        OVERLAP=overlap,
        **_steps(tokens, width),
        **_launch_options(overlap),
        **OPTIONS,
    )
    return q, scales, sums


class Steps(TypedDict):
    """What arrange_kernel calls so, and its warps."""

    TILE: int
    PARTS: int
    EARLY: bool
    num_warps: int


def _steps(tokens: int, width: int) -> Steps:
    """How tokens of `width` places are read.

    Of few tokens by many threads, of many by few, which wait for each other less often and share more of the work that
    does not grow with the token.
    """
    few = tokens <= FEW_TOKENS
    if width > MOST_KEPT:
        return Steps(TILE=STEP, PARTS=0, EARLY=few, num_warps=8)
    warps = min(8, next_power_of_2(cdiv(width, 32 * (32 if few else 96))))
    tile = PLACES_OF_WARP * warps
    return Steps(TILE=tile, PARTS=cdiv(width, tile), EARLY=few, num_warps=warps)


def _launch_gemv(call: Call, tile: GemvTile) -> None:
    out_features, row_bytes = call.packed.shape
    overlap, aligned = _can_overlap(call.x.device), row_bytes % 4 == 0
    words = cdiv(row_bytes, 4)
    whole = next_power_of_2(words)
    piece = min(whole, max(tile.words, whole // MOST_PIECES))
    programs = min(cdiv(out_features, tile.features), tile.programs * _processors(call.x.device))
    gemv_kernel[(programs,)](
        call.x,
        call.packed,
        call.y,
        call.weight_scale,
        call.zero_point,
        call.bias,
        out_features,
        call.x.shape[1],
        row_bytes // 4 if aligned else row_bytes,
        call.x.stride(1),
        PER_BYTE=call.per_byte,
        OFFSET=call.offset,
        ONE_SCALE=call.weight_scale.numel() == 1,
        ALIGNED=aligned,
        PTX=PTX,
        OVERLAP=overlap,
        FEATURES=tile.features,
        PIECES=cdiv(words, piece),
        WORDS=piece,
        DIGITS=call.digits,
        AHEAD=tile.ahead,
        num_warps=tile.warps,
        **_launch_options(overlap),
        **OPTIONS,
    )


def _launch_options(overlap: bool) -> dict[str, bool]:
    return {"launch_pdl": True} if overlap else {}


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _can_read_boxes(device: torch.device) -> bool:
    """Whether the GPU copies boxes of a matrix to shared memory, one instruction each (TMA)."""
    return INTERPRETED or _can_overlap(device)


@cache
def _can_overlap(device: torch.device) -> bool:
    """Whether a kernel may start before the one in front of it has ended (programmatic dependent launch)."""
    return PTX and torch.cuda.get_device_capability(device) >= (9, 0)
