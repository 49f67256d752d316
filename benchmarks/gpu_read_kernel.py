"""Triton kernels that do less than any layer: read memory, and nothing at all. Importing this needs Triton."""

import torch
import triton
from torch import Tensor
from triton import language as tl

# Words of 4 bytes that a program reads at once, how often, and with how many warps. Few large programs suit large
# weights, many small ones suit weights that one wave of programs reads.
LAUNCH_SHAPES = (
    (512, 1, 4),
    (512, 2, 4),
    (512, 4, 4),
    (1024, 1, 4),
    (1024, 2, 4),
    (1024, 4, 4),
    (1024, 8, 4),
    (1024, 1, 8),
    (2048, 2, 8),
    (2048, 4, 8),
    (2048, 8, 8),
    (4096, 2, 16),
    (4096, 4, 16),
)
NEVER = 0x5A17C0DE  # words are compared with it, so that no read can be left out; random ones hardly ever are equal


@triton.jit
def _read(words, found, count, block: tl.constexpr, steps: tl.constexpr, never: tl.constexpr):
    lane = tl.arange(0, block)
    first = tl.program_id(0) * (block * steps) + lane
    mixed = tl.zeros([block], tl.int32)
    for step in tl.static_range(steps):
        at = first + step * block
        mixed ^= tl.load(words + at, mask=at < count, other=0)
    tl.store(found + lane, mixed, mask=mixed == never)


@triton.jit
def _nothing(word):
    tl.store(word, 0, mask=tl.program_id(0) > 0)


def read(words: Tensor, found: Tensor, shape: tuple[int, int, int]) -> None:
    """Reads `words` (int32, fewer than 2**31) with one of LAUNCH_SHAPES. `found` is int32 of at least 4096."""
    block, steps, warps = shape
    _read[(triton.cdiv(words.numel(), block * steps),)](
        words, found, words.numel(), block, steps, NEVER, num_warps=warps
    )


def nothing(word: Tensor) -> None:
    """Launches one program that reads and writes nothing."""
    _nothing[(1,)](word, num_warps=1)


def words_of(memory: Tensor) -> Tensor:
    """`memory` as int32 words, without the up to 3 bytes behind the last whole one."""
    flat = memory.reshape(-1).view(torch.uint8)
    return flat[: flat.numel() // 4 * 4].view(torch.int32)
