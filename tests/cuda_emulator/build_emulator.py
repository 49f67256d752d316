"""Builds the CUDA kernels for the emulator: translated to C++ and compiled with AddressSanitizer."""

import sys
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path

from translate import translate

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from build_common import OBJECTS, SOURCES, run_if_stale  # noqa: E402

DIRECTORY = OBJECTS / "cuda_emulator"
LIBRARY = DIRECTORY / "cuda_emulator.so"
SANITIZE = "-fsanitize=address"
# -ffp-contract=off: as the GPU multiplies and adds here. The kernels' own warnings are nvcc's to give.
FLAGS = ["-std=c++20", "-g", "-fPIC", "-ffp-contract=off", f"-I{HERE}/include", f"-I{HERE}", f"-I{DIRECTORY}", "-w"]


def build() -> None:
    """Makes the library that emulated_cuda.py loads."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    headers = [*HERE.glob("*.h"), *HERE.glob("include/*.h")]
    sources = []
    for path in sorted((SOURCES / "cuda").iterdir()):
        translated = DIRECTORY / path.name
        text = translate(path.read_text())
        if not translated.exists() or translated.read_text() != text:
            translated.write_text(text)
        (sources if path.suffix == ".cu" else headers).append(translated)

    def compile_one(source: Path, flags: list[str]) -> str:
        output = DIRECTORY / f"{source.name}.o"
        command = ["g++", *FLAGS, *flags, "-x", "c++", "-c", str(source), "-o", str(output)]
        run_if_stale(command, output, [source, *headers], print)
        return str(output)

    # As nvcc does, which also knows its language from the first line on.
    of_kernels = ["-O1", SANITIZE, "-DBITLAB_HAVE_HOPPER", "-include", "cuda_runtime.h"]
    jobs = [(source, of_kernels) for source in [*sources, HERE / "library.cpp"]]
    # The machine changes stacks, which AddressSanitizer need not know of.
    jobs += [(HERE / name, ["-O2"]) for name in ("machine.cpp", "waiting.cpp")]
    jobs.sort(key=lambda job: "hopper" not in job[0].name)  # the longest first
    with ThreadPoolExecutor(cpu_count()) as pool:
        objects = list(pool.map(lambda job: compile_one(*job), jobs))
    command = ["g++", "-shared", SANITIZE, *objects, "-o", str(LIBRARY)]
    run_if_stale(command, LIBRARY, [Path(path) for path in objects], print)


if __name__ == "__main__":
    build()
