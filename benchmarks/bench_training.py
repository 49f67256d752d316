"""A training step (forward, backward, AdamW) of a quantized model against its dense twin, in one run.

    python benchmarks/bench_training.py [--device cpu|cuda] [--threads 1 2] [--output docs/benchmarks]

CPU: an MLP of four layers of 1024, batch 64, float32. GPU: decoder layers of a 1 B model, 8192 tokens, bf16 autocast on
float32 masters, fused AdamW. The twins are dense, quantized on the fused operators, and quantized by the PyTorch
definitions; their steps take turns. Writes training_<device>.json and .md.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from training_models import Mlp, decoder, squares

from bitcli.measurement.cpu_limits import cpu_name
from bitcore import BitQuantConfig
from bitcore.kernels import KernelRegistry
from bitlayers import BitLinear, convert

DENSE, FUSED, DEFINITIONS = "nn.Linear", "BitLinear", "BitLinear, PyTorch definitions"
WEIGHT_ONLY = "BitLinear, weight-only"


@dataclass
class Row:
    """One twin: medians over all rounds; spread is (largest - smallest) / median of its steps."""

    model: str
    threads: int | None
    twin: str
    step_ms: float
    forward_ms: float
    spread: float
    step_ratio: float  # median over the rounds of its step over the dense twin's in the same round
    kept_mb: float | None = None  # allocated between forward and backward pass
    peak_mb: float | None = None  # above what is allocated before the step


@dataclass
class Workload:
    """Twins of one model with what feeds them."""

    name: str
    dense: nn.Module
    x: Tensor
    autocast: bool
    rounds: int

    def twins(self) -> dict[str, nn.Module]:
        twins = {
            DENSE: self.dense,
            FUSED: convert(deepcopy(self.dense), BitQuantConfig()),
            DEFINITIONS: convert(deepcopy(self.dense), BitQuantConfig()),
            WEIGHT_ONLY: convert(deepcopy(self.dense), BitQuantConfig.weight_only()),
        }
        for layer in twins[DEFINITIONS].modules():
            if isinstance(layer, BitLinear):
                layer._kernel_name = "reference"
        return {name: model.to(self.x.device).train() for name, model in twins.items()}


class Step:
    """Forward, backward and AdamW of one twin."""

    def __init__(self, model: nn.Module, workload: Workload) -> None:
        self.model, self.x, self.autocast = model, workload.x, workload.autocast
        self.device = workload.x.device.type
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=self.device == "cuda" or None)
        self.forward_s: list[float] = []
        self.step_s: list[float] = []

    def forward(self) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16) if self.autocast else nullcontext():
            return squares(self.model, self.x)

    def __call__(self) -> None:
        start = self.now()
        loss = self.forward()
        middle = self.now()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_s.append(self.now() - start)
        self.forward_s.append(middle - start)

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def memory(self) -> tuple[float, float] | tuple[None, None]:
        """MB kept for the backward pass, and at most above what was there before."""
        if self.device != "cuda":
            return None, None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loss = self.forward()
        kept = torch.cuda.memory_allocated() - before
        loss.backward()
        peak = torch.cuda.max_memory_allocated() - before
        self.optimizer.zero_grad(set_to_none=True)
        return kept / 1e6, peak / 1e6


def measure(workload: Workload, threads: int | None) -> list[Row]:
    """Every twin's rows; the twins' steps take turns, so that the machine's moods meet all of them."""
    steps = {name: Step(model, workload) for name, model in workload.twins().items()}
    for _ in range(3):
        for step in steps.values():
            step()
    for step in steps.values():
        step.step_s.clear()
        step.forward_s.clear()
    for _ in track(range(workload.rounds), workload.name, console=Console(stderr=True)):
        for step in steps.values():
            step()
    dense = steps[DENSE].step_s
    rows = []
    for name, step in steps.items():
        middle = statistics.median(step.step_s)
        ratio = statistics.median(ours / theirs for ours, theirs in zip(step.step_s, dense, strict=True))
        spread = (max(step.step_s) - min(step.step_s)) / middle
        forward = statistics.median(step.forward_s)
        rows.append(Row(workload.name, threads, name, middle * 1e3, forward * 1e3, spread, ratio, *step.memory()))
    return rows


def cpu_workload() -> Workload:
    return Workload("MLP 4 x 1024, batch 64, float32", Mlp(), torch.randn(64, 1024), autocast=False, rounds=61)


def gpu_workload() -> Workload:
    x = torch.randn(4, 2048, 2048, device="cuda", dtype=torch.bfloat16)
    return Workload("4 decoder layers of a 1 B model, 8192 tokens, bf16 autocast", decoder(4), x, True, rounds=21)


def report(rows: list[Row], machine: str) -> str:
    """The run as Markdown."""
    kernel = KernelRegistry.get_kernel_for_config(BitQuantConfig(), device=machine.split(maxsplit=1)[0]).name
    lines = [
        f"# Training step on {machine}",
        "",
        f"torch {torch.__version__}, kernel {kernel}. Forward, backward and AdamW; medians, the twins' steps in turns.",
        "",
        "| model | threads | layers | step ms | of nn.Linear's | forward ms | spread | kept MB | peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        kept, peak = ("" if value is None else f"{value:.0f}" for value in (row.kept_mb, row.peak_mb))
        lines.append(
            f"| {row.model} | {row.threads or ''} | {row.twin} | {row.step_ms:.2f} | {row.step_ratio:.2f} | "
            f"{row.forward_ms:.2f} | {row.spread:.0%} | {kept} | {peak} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    workloads: list[tuple[int | None, Callable[[], Workload]]]
    if arguments.device == "cuda":
        machine = f"cuda ({torch.cuda.get_device_name()})"
        workloads = [(None, gpu_workload)]
    else:
        machine = f"cpu ({cpu_name()})"
        workloads = [(threads, cpu_workload) for threads in arguments.threads]
    rows = []
    for threads, workload in workloads:
        if threads is not None:
            torch.set_num_threads(threads)
        rows += measure(workload(), threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = report(rows, machine)
    (arguments.output / f"training_{arguments.device}.md").write_text(text)
    record = {"machine": machine, "torch": torch.__version__, "rows": [asdict(row) for row in rows]}
    (arguments.output / f"training_{arguments.device}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
