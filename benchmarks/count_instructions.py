r"""Instructions that each CPU kernel executes for 256 weights, a vector: a cost without a clock and, under qemu,
without hardware.

    python benchmarks/count_instructions.py
    python benchmarks/count_instructions.py --machine aarch64 --compiler aarch64-linux-gnu-g++ \
        --runner "qemu-aarch64 -cpu max"

Of a kernel's inner loops alone: the difference between two sizes. Loads, stores, prefetches and branches count too.
"""

import argparse
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import build_extensions as build

FORMATS = ("2bit", "base3", "int4", "int8")
WEIGHTS_PER_BYTE = (4, 5, 2)
VECTORS = (1, 4)
SIZES = (1920, 3840)  # bytes of a row: whole steps and blocks of every kernel
ROWS = 4


def build_program(compiler: str, machine: str, directory: Path) -> tuple[Path, list[str]]:
    """The core with count_instructions.cpp, and the names of its kernels."""
    jobs, kernels, _ = build.core_jobs(compiler, machine)
    jobs[Path(__file__).with_name("count_instructions.cpp")] = []
    objects = []
    for source, flags in jobs.items():
        output = directory / f"{source.stem}.o"
        build.run([*compiler.split(), *build.COMMON_FLAGS, *flags, "-c", str(source), "-o", str(output)])
        objects.append(str(output))
    program = directory / "count_instructions"
    static = [] if machine == platform.machine() else ["-static"]
    build.run([*compiler.split(), *static, *objects, "-o", str(program)])
    return program, kernels


def count(program: Path, runner: str, arguments: list[str]) -> int | None:
    """Instructions of one run; None if the kernel cannot run."""
    if not runner:
        result = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        return int(result.stdout) if result.returncode == 0 else None
    # One instruction a block, and a line of the log for each block that is executed.
    command = [*runner.split(), "-singlestep", "-d", "exec,nochain", str(program), *arguments, "--run"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return len(re.findall(r"^Trace", result.stderr, re.MULTILINE)) if result.returncode == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default=platform.machine())
    parser.add_argument("--compiler", help="this machine's by default")
    parser.add_argument("--runner", default="", help="an emulator: qemu-aarch64 and its options")
    arguments = parser.parse_args()
    headings = [f"{name}, {vectors} vector{'s' if vectors > 1 else ''}" for name in FORMATS for vectors in VECTORS]
    print(f"| kernel | {' | '.join(headings)} |", "|---|" + "---|" * len(headings), sep="\n")
    with tempfile.TemporaryDirectory() as directory:
        compiler = arguments.compiler or build.find_compiler()
        program, kernels = build_program(compiler, arguments.machine, Path(directory))
        for kernel in kernels:
            cells = []
            for number, per_byte in enumerate(WEIGHTS_PER_BYTE):
                for vectors in VECTORS:
                    small, large = (
                        count(program, arguments.runner, [kernel, str(number), str(vectors), str(size)])
                        for size in SIZES
                    )
                    if small is None or large is None:
                        break
                    weights = (SIZES[1] - SIZES[0]) * ROWS * per_byte
                    cells.append(f"{(large - small) * 256 / weights / vectors:.1f}")
            print(f"| `{kernel}` | {' | '.join(cells) or 'cannot run here'} |")


if __name__ == "__main__":
    main()
