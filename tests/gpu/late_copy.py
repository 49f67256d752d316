"""A copy on the GPU that lets the next kernel start long before it writes."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents

BLOCK = 4096


@triton.jit
def late_copy_kernel(to, source, size, BLOCK: tl.constexpr):
    """Bytes of `source` to `to`, a third of a millisecond late."""
    gdc_launch_dependents()
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = tl.inline_asm_elementwise(  # of each of a thread's 32 bytes
        "nanosleep.u32 10000; mov.u32 $0, $1;", "=r,r", [at], tl.int32, is_pure=False, pack=1
    )
    tl.store(to + at, tl.load(source + at, mask=at < size), mask=at < size)


def late_copy(to: Tensor, source: Tensor) -> None:
    """Copies contiguous `source` to `to`, of the same shape and dtype, on the current stream."""
    to, source = (tensor.view(-1).view(torch.uint8) for tensor in (to, source))
    late_copy_kernel[(triton.cdiv(to.numel(), BLOCK),)](to, source, to.numel(), BLOCK=BLOCK, num_warps=4)
