"""A language model of the shape of BitNet b1.58 2B4T, with random weights, on this CPU: decoding, prompts, loading.

    python benchmarks/bench_decoder.py [--layers 30] [--rivals transformers,llama.cpp] [--output docs/benchmarks]

Engines and a plain read of memory take turns, because the memory of a shared machine is not equally fast at all times;
ratios are medians of those of the rounds. Writes decoder_cpu.json and decoder_cpu.md. llama.cpp needs the package
llama-cpp-python.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from decoder_engines import (
    VOCAB_SIZE,
    BitLabEngine,
    Engine,
    LlamaCppEngine,
    TransformersEngine,
    model_config,
    random_model,
)
from decoder_report import report
from rich.console import Console

from bitcli.measurement.cpu_limits import cpu_name
from bitcli.measurement.timing import seconds_of
from bitcore import BitQuantConfig
from bitcore.kernels import KernelRegistry
from bitmodels import export_hf
from bitmodels.transformer import BitTransformerModel

READ_BYTES = 600_000_000

LOAD = r"""
import re, sys, time
from pathlib import Path
import torch
from bitmodels import AutoBitModel
start = time.perf_counter()
AutoBitModel.from_pretrained(sys.argv[1]).next_logits(torch.tensor([[1]]), None, None)
peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())  # ru_maxrss knows the parent's, too
print(time.perf_counter() - start, 1024 * int(peak[1]))
"""


@dataclass
class Run:
    """Everything that was measured. Times are seconds, one for each round."""

    cpu: str
    torch: str
    kernel: str
    threads: int
    layers: int
    head_dtype: str
    storage_format: str
    context: int
    weight_bytes: int = 0
    read_seconds: list[float] = field(default_factory=list)  # of weight_bytes at the speed of a plain read
    token_seconds: dict[str, list[float]] = field(default_factory=dict)
    prompt_seconds: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    other_seconds: list[float] = field(default_factory=list)  # of a token, less its matrix products
    load: dict[str, dict[str, float]] = field(default_factory=dict)


def seconds_a_token(engine: Engine, context: int, tokens: int) -> float:
    """The median token, decoded one after the other from `context` on."""
    engine.forget_after(context)
    times = [seconds_of(partial(engine.read, torch.randint(VOCAB_SIZE, (1,)))) for _ in range(tokens)]
    return statistics.median(times[1:])


def seconds_beside_products(engine: BitLabEngine, context: int, tokens: int) -> list[float]:
    """Each of some tokens, less all its matrix products right after it."""
    multiply, times = engine.products(), []
    engine.forget_after(context)
    for _ in range(tokens):
        whole = seconds_of(partial(engine.read, torch.randint(VOCAB_SIZE, (1,))))
        times.append(whole - seconds_of(multiply))
    return times[1:]


def measure(run: Run, engines: list[Engine], prompts: list[int], tokens: int, rounds: int) -> None:
    ours = next(engine for engine in engines if isinstance(engine, BitLabEngine))
    run.weight_bytes = ours.weight_bytes()
    memory = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    with torch.inference_mode():
        for engine in engines:
            engine.forget_after(0)
            engine.read(torch.randint(VOCAB_SIZE, (run.context,)))
        for _ in range(rounds):
            for engine in engines:
                seconds = min(seconds_of(memory.max) for _ in range(3)) / memory.nbytes * run.weight_bytes
                if engine is ours:
                    run.read_seconds.append(seconds)
                run.token_seconds.setdefault(engine.name, []).append(seconds_a_token(engine, run.context, tokens))
        run.other_seconds = seconds_beside_products(ours, run.context, tokens * rounds)
        for length in prompts:
            for _ in range(rounds):
                for engine in engines:
                    engine.forget_after(0)
                    seconds = seconds_of(partial(engine.read, torch.randint(VOCAB_SIZE, (length,))))
                    run.prompt_seconds.setdefault(engine.name, {}).setdefault(length, []).append(seconds)


def measure_loading(run: Run, model: BitTransformerModel, directory: Path) -> None:
    """Seconds from a directory to the first token in a new process, files in the page cache, and its peak memory."""
    for name, save in (
        ("BitLab", model.save_pretrained),
        ("Hugging Face bitnet", lambda path: export_hf(model, path)),
    ):
        path = directory / name.replace(" ", "_")
        save(path)
        command = [sys.executable, "-c", LOAD, str(path)]
        outputs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(3)]
        figures = [[float(word) for word in output.split()] for output in outputs]
        packed = (path / "model.safetensors").stat().st_size
        run.load[name] = {
            "seconds": statistics.median(seconds for seconds, _ in figures),
            "peak_bytes": max(peak for _, peak in figures),
            "file_bytes": packed,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--head", default="int8", choices=["float", "int8", "int4"])
    formats = ["base3", "2bit"]
    parser.add_argument("--storage-formats", nargs="+", default=formats, choices=formats, help="the first is compared")
    parser.add_argument("--context", type=int, default=128, help="positions before the tokens that are decoded")
    parser.add_argument("--prompts", type=int, nargs="*", default=[128, 512], help="lengths of prompts")
    parser.add_argument("--tokens", type=int, default=16, help="decoded in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rivals", default="transformers", help="transformers, llama.cpp, both with a comma, or none")
    parser.add_argument("--no-loading", action="store_true", help="leave out saving and loading")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"), help="folder of the report")
    arguments = parser.parse_args()
    rivals = set(filter(None, arguments.rivals.replace("none", "").split(",")))
    if rivals - {"transformers", "llama.cpp"}:
        parser.error(f"--rivals is {arguments.rivals}, expected transformers, llama.cpp, both with a comma, or none")

    torch.set_num_threads(arguments.threads)
    config = model_config(arguments.layers, arguments.head)
    run = Run(
        cpu_name(),
        torch.__version__,
        KernelRegistry.get_kernel_for_config(BitQuantConfig(), device="cpu").name,
        arguments.threads,
        arguments.layers,
        arguments.head,
        arguments.storage_formats[0],
        arguments.context,
    )
    with tempfile.TemporaryDirectory() as directory:
        engines: list[Engine] = [
            BitLabEngine(random_model(config, storage_format), f"BitLab {storage_format}")
            for storage_format in arguments.storage_formats
        ]
        if "transformers" in rivals:
            engines.append(TransformersEngine(config))
        if "llama.cpp" in rivals:
            llama = model_config(arguments.layers, "float", llama=True)
            engines.append(LlamaCppEngine(llama, Path(directory), arguments.threads))
        measure(run, engines, arguments.prompts, arguments.tokens, arguments.rounds)
        if not arguments.no_loading:
            as_published = random_model(model_config(arguments.layers, "float"))  # embeddings in bfloat16
            measure_loading(run, as_published, Path(directory))
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = report(run)
    (arguments.output / "decoder_cpu.json").write_text(json.dumps(asdict(run), indent=1) + "\n")
    (arguments.output / "decoder_cpu.md").write_text(text)
    Console(width=120).print(text)


if __name__ == "__main__":
    main()
