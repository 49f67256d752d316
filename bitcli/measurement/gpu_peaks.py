"""What a GPU can do at most, as far as PyTorch can tell."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from bitcli.measurement.gpu_graph_timing import time_calls

MEMORY_BYTES = 4 * 2**30  # of the reads and copies
PRODUCT = 8192  # tokens, input and output features of the matrix products


def copy_bandwidth(nbytes: int = MEMORY_BYTES) -> float:
    """Bytes a second, read and written, of a copy of `nbytes`."""
    source = torch.randint(-(2**31), 2**31 - 1, (nbytes // 4,), dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (time_calls(lambda _: target.copy_(source), 3).microseconds * 1e-6)


def bf16_peak() -> float:
    """Operations a second of a square matrix product in bfloat16."""
    x, weight = random_square(), random_square()
    return ops_per_s(lambda _: F.linear(x, weight))


def random_square() -> Tensor:
    """bfloat16 [PRODUCT, PRODUCT]."""
    return torch.randn(PRODUCT, PRODUCT, device="cuda", dtype=torch.bfloat16)


def ops_per_s(call: Callable[[int], Tensor]) -> float:
    """Operations a second of a square matrix product of PRODUCT."""
    return 2 * PRODUCT**3 / (time_calls(call, 8).microseconds * 1e-6)
