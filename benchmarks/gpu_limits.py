"""What this GPU can do at most, measured in the same run as the benchmarks that are read against it."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata

import torch
from gpu_competitors import gpu_read_kernel
from torch import Tensor

from bitcli.measurement.gpu_graph_timing import time_calls
from bitcli.measurement.gpu_peaks import MEMORY_BYTES, PRODUCT, bf16_peak, copy_bandwidth, ops_per_s, random_square

CLOCKS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")


@dataclass
class Limits:
    """Of one GPU, in one process. None where something could not be measured: `failures` says why."""

    gpu: str
    multiprocessors: int
    versions: dict[str, str]
    read_bytes_per_s: float | None = None
    copy_bytes_per_s: float | None = None  # read and written
    empty_node: float | None = None  # microseconds, of a kernel that does nothing, in a graph of 64
    add_node: float | None = None  # microseconds, of x.add_(1) on one element, in a graph of 64
    bf16_ops_per_s: float | None = None
    fp8_ops_per_s: float | None = None
    int8_ops_per_s: float | None = None  # of torch._int_mm
    idle_clocks: dict[str, str] = field(default_factory=dict)
    busy_clocks: dict[str, str] = field(default_factory=dict)  # during matrix products in bf16
    failures: dict[str, str] = field(default_factory=dict)


def measure_limits() -> Limits:
    """All limits of the current device."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    limits = Limits(properties.name, properties.multi_processor_count, versions())
    limits.idle_clocks = clocks()
    measurements: dict[str, Callable[[], float]] = {
        "read_bytes_per_s": read_bandwidth,
        "copy_bytes_per_s": copy_bandwidth,
        "empty_node": empty_node,
        "add_node": add_node,
        "bf16_ops_per_s": bf16_peak,
        "fp8_ops_per_s": fp8_peak,
        "int8_ops_per_s": int8_peak,
    }
    for name, measurement in measurements.items():
        try:
            with torch.inference_mode():
                setattr(limits, name, measurement())
        except Exception as error:  # an older GPU has no fp8; a machine without Triton no plain read
            limits.failures[name] = f"{type(error).__name__}: {error}"[:300]
    limits.busy_clocks = busy_clocks()
    torch.cuda.empty_cache()
    return limits


def versions() -> dict[str, str]:
    """Of PyTorch, Triton, CUDA and the driver."""
    found = {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
    try:
        found["triton"] = metadata.version("triton")
    except metadata.PackageNotFoundError:
        found["triton"] = "none"
    return found | nvidia_smi("driver_version")


def read_bandwidth() -> float:
    """Bytes a second of the read kernel, at its best launch shape."""
    if gpu_read_kernel is None:
        raise ImportError("Triton is not installed")
    words = torch.randint(-(2**31), 2**31 - 1, (MEMORY_BYTES // 4,), dtype=torch.int32, device="cuda")
    found = torch.zeros(4096, dtype=torch.int32, device="cuda")

    def seconds_with(shape: tuple[int, int, int]) -> float:
        def call(_: int) -> Tensor:
            gpu_read_kernel.read(words, found, shape)
            return found

        return time_calls(call, 3).microseconds * 1e-6

    return words.nbytes / min(map(seconds_with, gpu_read_kernel.LAUNCH_SHAPES))


def empty_node() -> float:
    if gpu_read_kernel is None:
        raise ImportError("Triton is not installed")
    word = torch.zeros(1, dtype=torch.int32, device="cuda")

    def call(_: int) -> Tensor:
        gpu_read_kernel.nothing(word)
        return word

    return time_calls(call, 64).microseconds


def add_node() -> float:
    x = torch.zeros(1, device="cuda")
    return time_calls(lambda _: x.add_(1), 64).microseconds


def fp8_peak() -> float:
    """With fast or exact accumulation, whichever is faster."""
    x, weight = random_square().to(torch.float8_e4m3fn), random_square().to(torch.float8_e4m3fn).t()
    one = torch.ones((), device="cuda")

    def rate(fast: bool) -> float:
        return ops_per_s(
            lambda _: torch._scaled_mm(
                x, weight, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=fast
            )
        )

    return max(rate(fast=True), rate(fast=False))


def int8_peak() -> float:
    x, weight = (torch.randint(-127, 128, (PRODUCT, PRODUCT), dtype=torch.int8, device="cuda") for _ in range(2))
    return ops_per_s(lambda _: torch._int_mm(x, weight.t()))


def busy_clocks() -> dict[str, str]:
    """`clocks` while the GPU multiplies matrices: about a second of them is queued before they are asked for."""
    x, weight = random_square(), random_square()
    out = torch.empty_like(x)
    for _ in range(900):
        torch.mm(x, weight, out=out)
    found = clocks()
    torch.cuda.synchronize()
    return found


def clocks() -> dict[str, str]:
    """Clocks, power and temperature as nvidia-smi reads them; empty where it cannot."""
    return nvidia_smi(*CLOCKS)


def nvidia_smi(*names: str) -> dict[str, str]:
    """What nvidia-smi says of the current device."""
    identity = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    if identity is not None:
        command.append(f"--id=GPU-{str(identity).removeprefix('GPU-')}")
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(names, (value.strip() for value in answer.splitlines()[0].split(",")), strict=False))
