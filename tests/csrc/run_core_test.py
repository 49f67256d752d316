"""Builds the torch-free kernels with their own C++ test and runs it: on this machine or, cross-compiled, under qemu.

python tests/csrc/run_core_test.py [--sanitize] [required kernel ...]
python tests/csrc/run_core_test.py --machine aarch64 --compiler aarch64-linux-gnu-g++ --runner qemu-aarch64
"""

import argparse
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import build_extensions as build

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]


def build_test(compiler: str, machine: str, directory: Path, extra: list[str]) -> Path:
    """Compiles the core and the C++ files beside this one into one program."""
    jobs, _, _ = build.core_jobs(compiler, machine)
    jobs |= {source: [] for source in sorted(Path(__file__).parent.glob("*.cpp"))}
    objects = []
    for source, flags in jobs.items():
        output = directory / f"{source.stem}.o"
        build.run([compiler, *build.COMMON_FLAGS, *flags, *extra, "-c", str(source), "-o", str(output)])
        objects.append(str(output))
    program = directory / "test_kernels"
    static = [] if machine == platform.machine() else ["-static"]  # another machine's libraries are not here
    build.run([compiler, *extra, *static, *objects, "-o", str(program)])
    return program


def main() -> int:
    """The command line. Returns the test's exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default=platform.machine())
    parser.add_argument("--compiler", help="one program, without arguments; this machine's by default")
    parser.add_argument("--runner", default="", help="a command that runs the program, such as qemu-aarch64")
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UndefinedBehaviorSanitizer")
    parser.add_argument("required", nargs="*", help="kernels whose skip is a failure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        extra = SANITIZE if arguments.sanitize else []
        program = build_test(arguments.compiler or build.find_compiler(), arguments.machine, Path(directory), extra)
        command = [*arguments.runner.split(), str(program), *arguments.required]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
