"""What this machine can do at most, measured in the same run as the benchmarks that are read against it."""

import ctypes
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from bitcore import BitQuantConfig
from bitcore.kernels import KernelRegistry

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import build_extensions


@dataclass
class Limits:
    """Of this CPU, with `threads` threads."""

    threads: int
    read_bytes_per_s: float
    fp32_ops_per_s: float
    dot_ops_per_s: float | None  # of the best kernel's int8 dot instruction; None where dot_peak.cpp has none


def measure_limits(threads: int) -> Limits:
    torch.set_num_threads(threads)
    return Limits(threads, read_bandwidth(), fp32_peak(), dot_peak(threads))


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
    """Bytes a second of a maximum over `size` bytes of int64, far more than any cache holds."""
    memory = torch.ones(size // 8, dtype=torch.int64)
    seconds, _ = median_seconds(memory.max)
    return memory.nbytes / seconds


def fp32_peak(size: int = 1536) -> float:
    """Operations a second of a square fp32 matrix product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds, _ = median_seconds(lambda: a @ b, seconds=1.0)
    return 2 * size**3 / seconds


def dot_peak(threads: int) -> float | None:
    """Operations a second of the dot instruction that the best CPU kernel is made of, from registers."""
    kernel = KernelRegistry.get_kernel_for_config(BitQuantConfig(), device="cpu").name
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "dot_peak.so"
        source = Path(__file__).with_name("dot_peak.cpp")
        flags = ["-std=c++20", "-O2", "-fPIC", "-shared"]
        subprocess.run([*build_extensions.find_compiler().split(), *flags, str(source), "-o", str(library)], check=True)
        peak = getattr(ctypes.CDLL(str(library)), f"peak_{kernel}", None)
    if peak is None:
        return None
    peak.argtypes, peak.restype = [ctypes.c_int64], ctypes.c_int64
    with ThreadPoolExecutor(threads) as pool:  # ctypes lets other threads run during a call

        def run() -> int:
            return sum(pool.map(peak, [5_000_000] * threads))

        seconds, _ = median_seconds(run)
        return run() / seconds


def cpu_name() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
