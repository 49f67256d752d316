"""What a CPU can do at most, as far as PyTorch can tell."""

import os
import platform
from pathlib import Path

import torch

from bitcli.measurement.timing import median_seconds


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


def cpu_name() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
