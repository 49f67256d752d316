"""this_machine: --threads, --device and --kernel."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from bitcore.exceptions import ArgumentError, DeviceError
from bitcore.kernels import KernelRegistry
from bitcore.kernels.registry import ENVIRONMENT_VARIABLE


@contextmanager
def this_machine(threads: int | None = None, device: str = "cpu", kernel: str | None = None) -> Iterator[torch.device]:
    """Obeys the three options while the block runs.

    The kernel is forced as by its environment variable: layers then decide once. `KernelRegistry.use` would make them
    decide again at every call.

    Raises:
        DeviceError, ArgumentError: there is no such device here.
        KernelNotFoundError: no kernel has this name.
    """
    found = _device(device)
    if kernel is not None:
        KernelRegistry.check_name(kernel)
    threads_before, kernel_before = torch.get_num_threads(), os.environ.get(ENVIRONMENT_VARIABLE)
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        if kernel is not None:
            os.environ[ENVIRONMENT_VARIABLE] = kernel
        with torch.cuda.device(found) if found.type == "cuda" else nullcontext():
            yield found
    finally:
        torch.set_num_threads(threads_before)
        if kernel is not None:
            os.environ.pop(ENVIRONMENT_VARIABLE)
            os.environ.update({} if kernel_before is None else {ENVIRONMENT_VARIABLE: kernel_before})


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ArgumentError("--device", repr(name), "cpu, cuda, or cuda:1") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ArgumentError("--device", repr(name), "cpu, cuda, or cuda:1")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no GPU here"
        raise DeviceError("--device", name, f"cpu: {why}")
    if device.index is not None and device.index >= count:
        raise DeviceError("--device", name, f"cuda:0 to cuda:{count - 1}, the GPUs that torch sees")
    return torch.device("cuda", device.index or 0)
