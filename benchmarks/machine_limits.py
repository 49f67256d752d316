"""What this machine can do at most, measured in the same run as the benchmarks that are read against it."""

import ctypes
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from bitcli.measurement.cpu_limits import fp32_peak, read_bandwidth
from bitcli.measurement.timing import median_seconds
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
