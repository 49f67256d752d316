"""Loads the compiled modules and keeps why one is missing. Never raises: without them the reference kernel serves."""

import importlib
import json
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from bitcore.exceptions import ExtensionWarning

BINDINGS = Path(__file__).parent / "kernels" / "bindings"
OPERATORS = BINDINGS / "bitlab_cpu.so"
CUDA_OPERATORS = BINDINGS / "bitlab_cuda.so"
BUILD_REPORT = BINDINGS / "build_report.json"
REMEDY = (
    "run `python build_extensions.py` in a source tree, "
    "or reinstall with BUILD_CPP_EXTENSIONS=1 to see the compiler's message"
)


@cache
def why_missing() -> str | None:
    """Why there are no compiled CPU kernels, or None when they are loaded."""
    if not OPERATORS.exists():
        return f"not built: {_build_failure()}"
    try:
        torch.ops.load_library(str(OPERATORS))  # type: ignore[no-untyped-call]
        importlib.import_module("bitcore.kernels.bindings._cpu")
    except (OSError, ImportError) as error:
        return f"built, but not loadable: {error}"
    return None


@cache
def why_cuda_missing() -> str | None:
    """Why there are no compiled CUDA kernels, or None when they are loaded. Touches no GPU."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if why_missing() is not None:  # it defines the operators
        return f"the compiled CPU kernels are missing: {why_missing()}"
    if not CUDA_OPERATORS.exists():
        cuda = build_report().get("cuda")
        failure = cuda.get("failure") if isinstance(cuda, dict) else None
        return f"not built: {failure or 'build_extensions.py has not run'}"
    try:
        torch.ops.load_library(str(CUDA_OPERATORS))  # type: ignore[no-untyped-call]
    except OSError as error:
        return f"built, but not loadable: {error}"
    return None


def cuda_architectures() -> tuple[str, ...]:
    """The compute capabilities that the CUDA kernels of this build are for, as in TORCH_CUDA_ARCH_LIST."""
    cuda = build_report().get("cuda")
    return tuple(cuda.get("architectures", ())) if isinstance(cuda, dict) else ()


def cpu_module() -> ModuleType | None:
    """The module of CPU and build facts, or None (see `why_missing`)."""
    return None if why_missing() else importlib.import_module("bitcore.kernels.bindings._cpu")


@cache
def cpu_kernel_names() -> tuple[str, ...]:
    """The compiled CPU kernels of this build, best first; a kernel's place goes into the operators' `mode`."""
    native = cpu_module()
    return () if native is None else tuple(native.kernel_names())


def build_report() -> dict[str, object]:
    """What build_extensions.py wrote of the last build; empty if it never ran."""
    return dict(json.loads(BUILD_REPORT.read_text())) if BUILD_REPORT.exists() else {}


@cache
def warn_that_missing(device_type: str) -> None:
    """Warns, once a device type, that the reference kernel serves where a compiled one was to be expected."""
    kernels, why = {"cpu": ("CPU", why_missing), "cuda": ("CUDA", why_cuda_missing)}[device_type]
    warnings.warn(
        f"BitLab's compiled {kernels} kernels are missing ({why()}); the PyTorch reference kernel serves. "
        f"To mend: {REMEDY}",
        ExtensionWarning,
        stacklevel=2,
    )


def _build_failure() -> str:
    return str(build_report().get("failure") or "build_extensions.py has not run")
