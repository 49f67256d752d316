"""What the builds of the CPU and the CUDA kernels share: where things lie, and how a compiler is run."""

import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "bitcore" / "csrc"
BINDINGS = ROOT / "bitcore" / "kernels" / "bindings"
OBJECTS = ROOT / "build" / "objects"

# -ffp-contract=off: fused multiply-adds would change the last bit of `sum * scale + bias`.
# -fno-trapping-math: nobody reads floating-point exception flags, and loops with a condition are vectorized only so.
COMMON_FLAGS = [
    *("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden"),
    *("-ffp-contract=off", "-fno-trapping-math", "-Wall", "-Wextra"),
]
TORCH_TARGET = "0x020a000000000000"  # the stable ABI of torch 2.10: the result loads into every later torch


class BuildError(Exception):
    """A compiler is missing or failed; the message is for people."""


def run(command: list[str]) -> str:
    """Runs a command and returns its output; raises BuildError with it on failure."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{result.stdout.strip()}")
    return result.stdout


def run_if_stale(command: list[str], output: Path, inputs: list[Path], say: Callable[[str], None]) -> None:
    """Runs `command` unless `output` is newer than `inputs` and was made by the same command."""
    record = OBJECTS / f"{output.name}.command"
    line = " ".join(command)
    fresh = output.exists() and record.exists() and record.read_text() == line
    if fresh and all(path.stat().st_mtime <= output.stat().st_mtime for path in inputs):
        return
    say(f"  {'link   ' if '-shared' in command else 'compile'} {output.name}")
    record.unlink(missing_ok=True)
    run(command)
    record.write_text(line)


def _torch_directory() -> Path:
    try:
        import torch  # noqa: PLC0415
    except ImportError as error:
        raise BuildError(
            f"torch is needed to build ({error}): install it first, then build with --no-build-isolation"
        ) from error
    return Path(torch.__file__).parent


def torch_compile_flags() -> list[str]:
    """Flags that find torch's headers."""
    include = _torch_directory() / "include"
    return [
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
        "-isystem",
        str(include),
        "-isystem",
        str(include / "torch/csrc/api/include"),
    ]


def torch_link_flags() -> list[str]:
    """Flags that link torch."""
    return [f"-L{_torch_directory() / 'lib'}", "-ltorch", "-ltorch_cpu"]
