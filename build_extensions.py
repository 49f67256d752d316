"""Builds the compiled kernels in place: what to compile, with which compiler and flags, and a report of how it went.

    python build_extensions.py            build what is out of date, say what was built and how to mend what failed
    python build_extensions.py --clean    remove everything that a build made

setup.py calls `build()`. BUILD_CPP_EXTENSIONS=0 builds nothing; =1 turns a failure into an error; unset, a failure
leaves the reference kernel to serve. CXX names the compiler. build_cuda.py says what there is for the CUDA kernels.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import build_cuda
from build_common import (
    BINDINGS,
    COMMON_FLAGS,
    OBJECTS,
    ROOT,
    SOURCES,
    BuildError,
    run,
    run_if_stale,
    torch_compile_flags,
    torch_link_flags,
)

COMPILERS = ("c++", "g++", "clang++")

# Kernel name -> (machine, flags of its source file kernel_<name>.cpp). No other file gets flags of an instruction set.
ISA_FLAGS = {
    "neon": ("aarch64", []),
    "neon_dotprod": ("aarch64", ["-march=armv8.2-a+dotprod"]),
    "neon_i8mm": ("aarch64", ["-march=armv8.2-a+dotprod+i8mm"]),
    "avx2": ("x86_64", ["-mavx2"]),
    "avx_vnni": ("x86_64", ["-mavx2", "-mavxvnni"]),
    "avx512_vnni": ("x86_64", ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"]),
}
# GCC 12 warns of its own AVX-512 intrinsics.
ISA_WARNINGS = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]


@dataclass
class Report:
    """What was built, for people and for `python -m bitcore`."""

    compiler: str = ""
    kernels: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failure: str | None = None
    cuda: dict[str, Any] = field(default_factory=dict)


def find_compiler() -> str:
    """The C++ compiler: CXX if set, else the first of COMPILERS that is there."""
    chosen = os.environ.get("CXX")
    for name in [chosen] if chosen else COMPILERS:
        if shutil.which(name.split()[0]):
            return name
    looked_for = chosen or ", ".join(COMPILERS)
    raise BuildError(f"no C++ compiler was found (looked for {looked_for}); install g++ 11 or newer, or set CXX")


def build(say: Callable[[str], None] = print) -> Report:
    """Builds the modules into bitcore/kernels/bindings as the environment asks, and writes build_report.json.

    Raises:
        BuildError: the build failed and BUILD_CPP_EXTENSIONS or BUILD_CUDA_EXTENSIONS is 1.
    """
    wish = os.environ.get("BUILD_CPP_EXTENSIONS", "")
    report = Report()
    start = time.monotonic()
    try:
        if wish == "0":
            raise BuildError("BUILD_CPP_EXTENSIONS=0 turned the build off")
        _build_into(report, say)
        report.cuda = vars(build_cuda.build(find_compiler(), say))
    except BuildError as error:
        report.failure = str(error)
    BINDINGS.mkdir(parents=True, exist_ok=True)
    (BINDINGS / "build_report.json").write_text(json.dumps(vars(report), indent=2) + "\n")
    if report.failure is None:
        say(f"built {', '.join(report.kernels)} with {report.compiler} in {time.monotonic() - start:.0f} s")
        for name, reason in report.skipped.items():
            if ISA_FLAGS[name][0] == _machine():
                say(f"left out {name}: {reason}")
        if report.cuda["failure"] is None:
            say(f"built CUDA kernels for {', '.join(report.cuda['architectures'])} with {report.cuda['compiler']}")
        elif os.environ.get("BUILD_CUDA_EXTENSIONS") == "1":
            raise BuildError(report.cuda["failure"])
        else:
            say(f"left out CUDA kernels: {report.cuda['failure']}")
        return report
    for name in ("bitlab_cpu.so", f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"):
        (BINDINGS / name).unlink(missing_ok=True)
    if wish == "1":
        raise BuildError(report.failure)
    say(f"compiled kernels were not built, the PyTorch reference kernel will serve: {report.failure}")
    return report


def core_jobs(compiler: str, machine: str) -> tuple[dict[Path, list[str]], list[str], dict[str, str]]:
    """The torch-free sources for `machine` with their flags, the kernels in them, and why others are left out."""
    isa_sources = {name: SOURCES / "cpu" / f"kernel_{name}.cpp" for name in ISA_FLAGS}
    kernels, skipped = [], {}
    for name, (its_machine, flags) in ISA_FLAGS.items():
        if machine != its_machine:
            skipped[name] = f"it is for {its_machine}, this machine is {machine}"
        elif not _knows(compiler, flags):
            skipped[name] = f"{compiler} does not know {' '.join(flags)}"
        else:
            kernels.append(name)
    defines = [f"-DBITLAB_HAVE_{name.upper()}" for name in kernels]
    jobs = {isa_sources[name]: [*ISA_FLAGS[name][1], *ISA_WARNINGS] for name in kernels}
    for source in sorted((SOURCES / "cpu").glob("*.cpp")):
        if source not in isa_sources.values():
            jobs[source] = defines
    return jobs, [*kernels, "portable"], skipped


def _build_into(report: Report, say: Callable[[str], None]) -> None:
    compiler = find_compiler()
    report.compiler = run([*compiler.split(), "--version"]).splitlines()[0]
    OBJECTS.mkdir(parents=True, exist_ok=True)
    BINDINGS.mkdir(parents=True, exist_ok=True)
    jobs, report.kernels, report.skipped = core_jobs(compiler, _machine())
    operator_sources = [
        SOURCES / "bindings" / name for name in ("cpu_ops.cpp", "cpu_training_ops.cpp", "decoder_ops.cpp")
    ]
    jobs |= dict.fromkeys(operator_sources, torch_compile_flags())
    jobs[SOURCES / "bindings" / "module.cpp"] = _python_compile_flags()

    def compile_one(job: tuple[Path, list[str]]) -> Path:
        source, flags = job
        output = OBJECTS / f"{source.stem}.o"
        command = [*compiler.split(), *COMMON_FLAGS, *flags, "-c", str(source), "-o", str(output)]
        run_if_stale(command, output, [source, *SOURCES.rglob("*.h")], say)
        return output

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = {output.stem: output for output in pool.map(compile_one, jobs.items())}
    operators = [str(output) for name, output in objects.items() if name != "module"]
    facts = [str(output) for name, output in objects.items() if name not in {path.stem for path in operator_sources}]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for output, parts, flags in (
        (BINDINGS / "bitlab_cpu.so", operators, torch_link_flags()),
        (BINDINGS / f"_cpu{suffix}", facts, ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []),
    ):
        run_if_stale(
            [*compiler.split(), "-shared", "-o", str(output), *parts, *flags],
            output,
            [Path(part) for part in parts],
            say,
        )


def _machine() -> str:
    return {"arm64": "aarch64"}.get(platform.machine(), platform.machine())


def _knows(compiler: str, flags: list[str]) -> bool:
    command = [*compiler.split(), *flags, "-x", "c++", "-fsyntax-only", "-"]
    return subprocess.run(command, input="", capture_output=True, text=True, check=False).returncode == 0


def _python_compile_flags() -> list[str]:
    try:
        import pybind11  # noqa: PLC0415
    except ImportError as error:
        raise BuildError(f"pybind11 is needed to build ({error}): pip install pybind11") from error
    return ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]


def clean() -> None:
    """Removes what a build made."""
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    for path in BINDINGS.glob("*"):
        if path.suffix in (".so", ".json"):
            path.unlink()


def main() -> int:
    """The command line. Returns the exit status: 0 as asked, 1 if the build failed."""
    parser = argparse.ArgumentParser(description="Build BitLab's compiled kernels in place.")
    parser.add_argument("--clean", action="store_true", help="remove everything that a build made")
    if parser.parse_args().clean:
        clean()
        print("removed the built modules and objects")
        return 0
    try:
        report = build()
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if report.failure is None or os.environ.get("BUILD_CPP_EXTENSIONS") == "0" else 1


if __name__ == "__main__":
    sys.exit(main())
