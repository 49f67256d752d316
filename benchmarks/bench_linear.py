"""BitLinear against PyTorch's linear layers on this CPU: whole Python calls, float32 in to float32 out, hot cache, one
run.

    python benchmarks/bench_linear.py [--threads 1 2] [--quick] [--json docs/benchmarks/linear.json]

Prints each layer's median time, its ratio to the rivals, and the spread of the timed loops; beside it the machine's
limits, the memory of a deployed layer and what each asked-for figure came to. The int8 rival quantizes its activations
too.
"""

import argparse
import json
import platform
import warnings
from pathlib import Path

import torch
from machine_limits import fp32_peak, median_seconds, read_bandwidth
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bitcore import BitQuantConfig
from bitcore.kernels import KernelRegistry
from bitlayers import BitLinear

SHAPES = {  # out_features, in_features: a model that has it
    (64, 64): "call overhead",
    (768, 768): "BERT base",
    (2560, 2560): "BitNet 2B-4T attention",
    (6912, 2560): "BitNet 2B-4T gate, up",
    (4096, 4096): "Llama 7B attention",
}
BATCHES = (1, 4, 16, 64, 512)
QUICK_BATCHES = (1, 64)


def dynamic_int8(linear: nn.Linear) -> nn.Module:
    """PyTorch's dynamically quantized int8 linear."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear}, torch.qint8)[0]


def layers_of(out_features: int, in_features: int) -> dict[str, nn.Module]:
    """The layers that are compared, of the same weights."""
    linear = nn.Linear(in_features, out_features).eval()
    layers = {"nn.Linear fp32": linear, "dynamic int8": dynamic_int8(linear)}
    for name in KernelRegistry.list_available_kernels():
        layer = BitLinear.from_linear(linear)
        layer._kernel_name = name
        layers[f"BitLinear {name}"] = layer.deploy()
    return layers


def bench(threads: int, batches: tuple[int, ...]) -> list[dict[str, object]]:
    """One row a layer, shape and batch."""
    torch.set_num_threads(threads)
    rows: list[dict[str, object]] = []
    for out_features, in_features in SHAPES:
        layers = layers_of(out_features, in_features)
        for batch in batches:
            x = torch.randn(batch, in_features)
            for name, layer in layers.items():
                if name.endswith(("portable", "reference")) and batch * out_features * in_features > 64 * 2560 * 2560:
                    continue  # minutes
                seconds, spread = time_layer(layer, x)
                rows.append(
                    {
                        "threads": threads,
                        "shape": [out_features, in_features],
                        "batch": batch,
                        "layer": name,
                        "microseconds": seconds * 1e6,
                        "spread": spread,
                        "giga_ops": 2e-9 * batch * out_features * in_features / seconds,
                    }
                )
    return rows


def time_layer(layer: nn.Module, x: Tensor) -> tuple[float, float]:
    with torch.inference_mode():
        return median_seconds(lambda: layer(x))


def show(rows: list[dict[str, object]], console: Console) -> None:
    """A table for each number of threads."""
    fastest = f"BitLinear {KernelRegistry.get_kernel_for_config(BitQuantConfig()).name}"
    for threads in sorted({row["threads"] for row in rows}):
        table = Table(
            title=f"{threads} thread(s): median microseconds (spread), and how many times faster {fastest} is"
        )
        for heading in ("shape", "batch", "layer", "µs", "spread", "GOP/s", "ratio"):
            table.add_column(heading, justify="left" if heading == "layer" else "right")
        for row in rows:
            if row["threads"] != threads:
                continue
            ours = find(rows, threads, row["shape"], row["batch"], fastest)
            ratio = "" if row["layer"] == fastest else f"{row['microseconds'] / ours:.2f}x"
            shape = "x".join(map(str, row["shape"]))
            values = (f"{row['microseconds']:.1f}", f"{row['spread']:.0%}", f"{row['giga_ops']:.0f}", ratio)
            table.add_row(
                shape, str(row["batch"]), row["layer"], *values, end_section=row["layer"].endswith("reference")
            )
        console.print(table)


def find(rows: list[dict[str, object]], threads: int, shape: list[int], batch: int, layer: str) -> float:
    """Microseconds of one row."""
    wanted = (threads, list(shape), batch, layer)
    return next(r["microseconds"] for r in rows if (r["threads"], r["shape"], r["batch"], r["layer"]) == wanted)


def show_goals(rows: list[dict[str, object]], console: Console) -> None:
    """The figures that the first compiled kernel is asked for."""
    fastest = f"BitLinear {KernelRegistry.get_kernel_for_config(BitQuantConfig()).name}"
    goals = (
        ([2560, 2560], 1, "nn.Linear fp32", 12.0),
        ([2560, 2560], 1, "dynamic int8", 1.5),
        ([2560, 2560], 64, "dynamic int8", 0.7),
        ([64, 64], 1, "nn.Linear fp32", 1.0),
    )
    table = Table(title="asked for")
    for heading in ("threads", "shape", "batch", "times faster than", "goal", "measured"):
        table.add_column(heading, justify="right")
    for threads in sorted({row["threads"] for row in rows}):
        for shape, batch, rival, goal in goals:
            ratio = find(rows, threads, shape, batch, rival) / find(rows, threads, shape, batch, fastest)
            table.add_row(str(threads), "x".join(map(str, shape)), str(batch), rival, f"{goal:.1f}x", f"{ratio:.2f}x")
    console.print(table)


def memory(console: Console) -> dict[str, float]:
    """Bytes of a deployed 4096 x 4096 layer, packed weight, scale and bias, over those of nn.Linear."""
    linear = nn.Linear(4096, 4096)
    dense = sum(tensor.nbytes for tensor in linear.state_dict().values())
    shares = {}
    for storage_format in ("2bit", "base3"):
        layer = BitLinear.from_linear(linear, BitQuantConfig(storage_format=storage_format)).deploy()
        shares[storage_format] = sum(tensor.nbytes for tensor in layer.state_dict().values()) / dense
        console.print(f"deployed 4096x4096 in {storage_format}: {shares[storage_format]:.3%} of fp32")
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--quick", action="store_true", help=f"batches {QUICK_BATCHES} alone")
    parser.add_argument("--json", type=Path, default=Path("outputs/bench_linear.json"), help="where the figures go")
    arguments = parser.parse_args()
    console = Console(width=110)
    batches = QUICK_BATCHES if arguments.quick else BATCHES

    limits = {}
    for threads in sorted(set(arguments.threads)):
        torch.set_num_threads(threads)
        limits[threads] = {"read_gb_per_s": read_bandwidth() * 1e-9, "fp32_gflop_per_s": fp32_peak() * 1e-9}
        console.print(
            f"limits, {threads} thread(s): memory read {limits[threads]['read_gb_per_s']:.1f} GB/s, "
            f"fp32 matrix product {limits[threads]['fp32_gflop_per_s']:.0f} GFLOP/s"
        )
    rows = [row for threads in sorted(set(arguments.threads)) for row in bench(threads, batches)]
    show(rows, console)
    show_goals(rows, console)
    shares = memory(console)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cpu": cpu_name(), "torch": torch.__version__, "limits": limits}
    arguments.json.write_text(json.dumps({"machine": machine, "memory": shares, "rows": rows}, indent=1) + "\n")
    console.print(f"figures: {arguments.json}")


def cpu_name() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
