"""Builds the CUDA kernels: which architectures, with which flags. Called by build_extensions.py.

BUILD_CUDA_EXTENSIONS=0 builds none; =1 turns a failure into an error, and builds also where torch has no CUDA; unset,
they are built where torch has CUDA and nvcc is found. NVCC names the compiler, or CUDA_HOME the folder it is in.
TORCH_CUDA_ARCH_LIST ("9.0a;10.0+PTX") names the architectures, as it does for PyTorch's own extensions.
"""

import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from build_common import (
    BINDINGS,
    OBJECTS,
    SOURCES,
    BuildError,
    run,
    run_if_stale,
    torch_compile_flags,
    torch_link_flags,
)

ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0a", "10.0+PTX")
# Sources that use the instructions of one architecture are compiled for that one alone.
ONLY_FOR = {"hopper.cu": "9.0a", "hopper_turns.cu": "9.0a"}
# --fmad=false: fused multiply-adds would change the last bit of `sum * scale + bias`.
NVCC_FLAGS = [
    "-std=c++20",
    "-O3",
    "--fmad=false",
    "--expt-relaxed-constexpr",
    "-Xcompiler",
    "-fPIC,-fvisibility=hidden",
]
LIBRARY = BINDINGS / "bitlab_cuda.so"


@dataclass
class CudaReport:
    """What was built for NVIDIA GPUs."""

    compiler: str = ""
    architectures: list[str] = field(default_factory=list)
    failure: str | None = None


def build(compiler: str, say: Callable[[str], None]) -> CudaReport:
    """Builds bitlab_cuda.so with nvcc and the C++ `compiler`, or says in the report why not."""
    wish = os.environ.get("BUILD_CUDA_EXTENSIONS", "")
    report = CudaReport()
    try:
        if wish == "0":
            raise BuildError("BUILD_CUDA_EXTENSIONS=0 turned the build off")
        if wish != "1" and _torch_cuda() is None:
            raise BuildError("this torch is built without CUDA")
        _build_into(report, compiler, say)
    except BuildError as error:
        report.failure = str(error)
        LIBRARY.unlink(missing_ok=True)
    return report


def find_nvcc() -> str:
    """The CUDA compiler: NVCC, else nvcc of CUDA_HOME, of the PATH, of /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME")
    named = os.environ.get("NVCC")
    for candidate in (named, home and f"{home}/bin/nvcc", "nvcc", "/usr/local/cuda/bin/nvcc"):
        found = shutil.which(candidate) if candidate else None
        if found:
            return found
        if candidate and candidate == named:
            break
    raise BuildError(
        f"nvcc was not found{f' (NVCC is {named})' if named else ''}; install the CUDA toolkit, or set NVCC"
    )


def architectures() -> list[str]:
    """The compute capabilities to build for: TORCH_CUDA_ARCH_LIST, or all of ARCHITECTURES."""
    wish = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    chosen = [name for name in re.split(r"[;,\s]+", wish) if name] or list(ARCHITECTURES)
    for name in chosen:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
            raise BuildError(f"TORCH_CUDA_ARCH_LIST names {name!r}, expected numbers such as 9.0a or 8.0+PTX")
    # Hopper's own instructions need the "a"; without it a GPU of that kind would be served by the slower kernels.
    return ["9.0a" + name[3:] if name.split("+")[0] == "9.0" else name for name in chosen]


def architecture_flags(names: list[str]) -> list[str]:
    """Nvcc's -gencode flags."""
    flags = []
    for name in names:
        number = name.removesuffix("+PTX").replace(".", "")
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if name.endswith("+PTX"):
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


def _torch_cuda() -> str | None:
    import torch  # noqa: PLC0415

    return torch.version.cuda


def _build_into(report: CudaReport, compiler: str, say: Callable[[str], None]) -> None:
    nvcc = [find_nvcc(), "-ccbin", compiler.split(maxsplit=1)[0]]
    report.compiler = run([nvcc[0], "--version"]).strip().splitlines()[-1]
    names = architectures()
    headers = [*SOURCES.rglob("*.h"), *SOURCES.rglob("*.cuh")]
    cuda_sources = sorted((SOURCES / "cuda").glob("*.cu"))
    bindings = [SOURCES / "bindings" / name for name in ("cuda_ops.cpp", "cuda_decoding_ops.cpp")]
    hopper = any(name.startswith("9.0a") for name in names)
    defines = ["-DBITLAB_HAVE_HOPPER"] if hopper else []

    def compile_one(source: Path) -> Path:
        output = OBJECTS / f"{source.stem}{source.suffix}.o"
        if source.suffix == ".cu":
            only = ONLY_FOR.get(source.name)
            flags = [*defines, *architecture_flags([name for name in names if only is None or name.startswith(only)])]
        else:
            flags = ["-DUSE_CUDA", *torch_compile_flags()]
        command = [*nvcc, *NVCC_FLAGS, *flags, "-c", str(source), "-o", str(output)]
        run_if_stale(command, output, [source, *headers], say)
        return output

    sources = [source for source in cuda_sources if hopper or source.name not in ONLY_FOR]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [*sources, *bindings]))
    link = [*nvcc, "-shared", "-cudart", "static", "-o", str(LIBRARY)]
    run_if_stale([*link, *map(str, objects), *torch_link_flags()], LIBRARY, objects, say)
    report.architectures = names
