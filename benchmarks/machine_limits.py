"""What this machine can do at most, measured in the same run as the benchmarks that are read against it."""

import statistics
import time
from collections.abc import Callable

import torch


def median_seconds(call: Callable[[], object], seconds: float = 0.3, repeats: int = 9) -> tuple[float, float]:
    """Median seconds of a call and the spread, (largest - smallest) / median, of `repeats` timed loops.

    A warm-up comes first; each loop runs long enough to fill its part of `seconds`.
    """
    call()
    start = time.perf_counter()
    call()
    once = max(time.perf_counter() - start, 1e-7)
    loops = max(1, int(seconds / repeats / once))
    for _ in range(min(loops, 100)):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(loops):
            call()
        times.append((time.perf_counter() - start) / loops)
    middle = statistics.median(times)
    return middle, (max(times) - min(times)) / middle


def read_bandwidth(size: int = 1 << 29) -> float:
    """Bytes a second of a sum over `size` bytes of int32, far more than any cache holds."""
    memory = torch.ones(size // 8, dtype=torch.int64)
    seconds, _ = median_seconds(memory.sum)
    return memory.nbytes / seconds


def fp32_peak(size: int = 1536) -> float:
    """Operations a second of a square fp32 matrix product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds, _ = median_seconds(lambda: a @ b, seconds=1.0)
    return 2 * size**3 / seconds
