"""BitLinear against PyTorch's linear layers on this CPU: whole Python calls, float in to float out, activation
quantization included, in one run.

    python benchmarks/bench_linear.py [--threads 1 2] [--quick] [--output docs/benchmarks]

Measures the machine's limits beside, and writes cpu_linear.json, cpu_linear.md (every figure that the kernels are asked
for) and two plots.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from linear_goals import Goal, goals
from linear_plots import plot_by_batch, plot_roofline
from linear_rows import BATCHES, LARGE, QUICK_BATCHES, Row, against_dynamic_int8, measure
from machine_limits import Limits, measure_limits
from rich.console import Console
from rich.progress import track
from torch import nn

from bitcli.measurement.cpu_limits import cpu_name
from bitcore import BitQuantConfig
from bitcore.kernels import KernelRegistry
from bitlayers import BitLinear

AVX2_ALONE = {"BITLAB_CPU_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def avx2_rows(threads: list[int]) -> list[Row]:
    """Batch 1 in a process in which BitLab and PyTorch have AVX2 alone; empty where there is none."""
    if "avx2" not in KernelRegistry.list_available_kernels():
        return []
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, __file__, "--only-batch-1", file.name, "--threads", *map(str, threads)]
        subprocess.run(command, env=os.environ | AVX2_ALONE, check=True)
        return [Row(**{**row, "shape": tuple(row["shape"])}) for row in json.loads(Path(file.name).read_text())]


def batch_1(threads: list[int]) -> Iterator[Row]:
    for n in threads:
        for shape in LARGE:
            yield from against_dynamic_int8(n, shape, (1,), nn.Linear(shape[1], shape[0]).eval())


def memory_shares() -> dict[str, float]:
    """Bytes of a deployed 4096 x 4096 layer, packed weight, scale and bias, over those of nn.Linear."""
    linear = nn.Linear(4096, 4096)
    dense = sum(tensor.nbytes for tensor in linear.state_dict().values())
    shares = {}
    for storage_format in ("2bit", "base3"):
        layer = BitLinear.from_linear(linear, BitQuantConfig(storage_format=storage_format)).deploy()
        shares[storage_format] = sum(tensor.nbytes for tensor in layer.state_dict().values()) / dense
    return shares


def report(rows: list[Row], limits: dict[int, Limits], answers: list[Goal], shares: dict[str, float]) -> str:
    """The run as Markdown."""
    kernel = KernelRegistry.get_kernel_for_config(BitQuantConfig(), device="cpu").name
    lines = [
        "# CPU: linear layers",
        "",
        f"Written by `make bench` on {cpu_name()}, torch {torch.__version__}, kernel {kernel}.",
        "Whole Python calls, float in to float out, activation quantization included; medians.",
        "",
        "| threads | DRAM read GB/s | fp32 matrix product GFLOP/s | int8 dot instructions GOP/s |",
        "|---|---|---|---|",
    ]
    for n, limit in sorted(limits.items()):
        peak = "" if limit.dot_ops_per_s is None else f"{limit.dot_ops_per_s * 1e-9:.0f}"
        lines.append(f"| {n} | {limit.read_bytes_per_s * 1e-9:.1f} | {limit.fp32_ops_per_s * 1e-9:.0f} | {peak} |")
    lines += ["", "![by batch](cpu_linear_by_batch.png)", "", "![roofline](cpu_linear_roofline.png)", ""]
    lines += ["## Asked for", "", "| figure | at least | measured |", "|---|---|---|"]
    for goal in answers:
        mark = "" if goal.measured >= goal.asked else " (not reached)"
        lines.append(f"| {goal.what} | {goal.asked_text} | {goal}{mark} |")
    lines += ["", "## Memory of a deployed 4096x4096 layer, with scale and bias", ""]
    lines += [f"- {storage_format}: {share:.3%} of fp32" for storage_format, share in shares.items()]
    lines += ["", "## All measurements", ""]
    lines += [
        "| threads | shape | batch | layer | weights | µs | spread | GOP/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shape = "x".join(map(str, row.shape))
        figures = f"{row.seconds * 1e6:.1f} | {row.spread:.0%} | {row.ops_per_s * 1e-9:.0f}"
        lines.append(f"| {row.threads} | {shape} | {row.batch} | {row.layer} | {row.weights} | {figures} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--quick", action="store_true", help=f"batches {QUICK_BATCHES} alone")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"), help="folder of the report")
    parser.add_argument(
        "--only-batch-1", type=Path, metavar="JSON", help="write the rows of batch 1 to a file, no more"
    )
    arguments = parser.parse_args()
    threads = sorted(set(arguments.threads))
    if arguments.only_batch_1:
        arguments.only_batch_1.write_text(json.dumps([asdict(row) for row in batch_1(threads)]))
        return

    console = Console(width=120)
    limits = {n: measure_limits(n) for n in threads}
    batches = QUICK_BATCHES if arguments.quick else BATCHES
    rows: list[Row] = []
    for n in threads:
        rows += track(measure(n, batches), description=f"{n} thread(s)", console=console, transient=True, total=None)
    answers = list(goals(rows, limits, avx2_rows(threads)))
    answers = [goal for goal in answers if goal.measured == goal.measured]  # leaves out what was not measured
    shares = memory_shares()

    arguments.output.mkdir(parents=True, exist_ok=True)
    text = report(rows, limits, answers, shares)
    (arguments.output / "cpu_linear.md").write_text(text)
    figures = {
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "limits": [asdict(limit) for limit in limits.values()],
        "memory": shares,
        "goals": [asdict(goal) for goal in answers],
        "rows": [asdict(row) for row in rows],
    }
    (arguments.output / "cpu_linear.json").write_text(json.dumps(figures, indent=1) + "\n")
    plot_by_batch(rows, limits, arguments.output / "cpu_linear_by_batch.png")
    plot_roofline(rows, limits, arguments.output / "cpu_linear_roofline.png")
    console.print(text.partition("## All measurements")[0])
    console.print(f"report, figures and plots: {arguments.output}")


if __name__ == "__main__":
    main()
