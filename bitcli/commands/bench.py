"""`bitlab bench`: one layer on this machine, by BitLab's kernels and by PyTorch."""

import re
import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bitcli.options import Device, DtypeName, Json, Threads
from bitcli.output import print_facts, print_json, print_table, say, size

if TYPE_CHECKING:
    from bitcli.measurement.layer_bench import Bench
    from bitcore import BitQuantConfig

UNSTEADY = 0.25
LIMITS = {
    "read_bytes_per_s": "reading memory",
    "copy_bytes_per_s": "copying memory",
    "fp32_ops_per_s": "fp32 product",
    "bf16_ops_per_s": "bf16 product",
}
COLUMNS = {
    "layer": "left",
    "weights": "right",
    "from": "left",
    "µs": "right",
    "spread": "right",
    "weights GB/s": "right",
    "GOP/s": "right",
    "faster": "right",
}


def bench(
    shape: Annotated[str, typer.Option(metavar="NxK", help="The layer's out_features x in_features.")] = "4096x4096",
    rows: Annotated[
        int, typer.Option("--rows", "-m", min=1, help="Tokens of a call: 1 is decoding, many are prefill.")
    ] = 1,
    dtype: Annotated[
        DtypeName | None,
        typer.Option(show_default=False, help="Of input and output. Default: float32 on a CPU, bfloat16 on a GPU."),
    ] = None,
    weights: Annotated[Literal["2bit", "base3", "int4"], typer.Option(help="Of BitLab's layer.")] = "2bit",
    activations: Annotated[Literal["int8", "float32"], typer.Option(help="float32: as they come.")] = "int8",
    hot: Annotated[
        bool,
        typer.Option(
            "--hot",
            help="Call one layer over and over: its weights stay in cache, where they fit. Else copies take turns, and "
            "weights come from memory, as in a model.",
        ),
    ] = False,
    kernel: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", show_default=False, help="Measure this kernel. Can be given several times."),
    ] = None,
    threads: Threads = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Measure one linear layer: the kernels that can serve it, PyTorch's dense layers, and the machine's limits.

    Float in, float out, activation quantization included, no bias. On a CPU the competitors take turns in this process,
    after a warm-up; spread is (slowest - fastest) / median. On a GPU each is a CUDA graph; spread is that between the
    quantiles of 20 and 80 %.
    """
    import torch

    from bitcli.machine import this_machine
    from bitcli.measurement.layer_bench import bench_layer

    sizes = _sizes(shape)
    with this_machine(threads, device) as on:
        name = dtype or ("float32" if on.type == "cpu" else "bfloat16")
        result = bench_layer(_config(weights, activations), sizes, rows, getattr(torch, name), on, hot, kernel)
    asked = {"shape": list(sizes), "rows": rows, "dtype": name, "weights": weights, "activations": activations}
    if json:
        print_json({**asked, **asdict(result), "torch": torch.__version__})
        return
    print_facts({"machine": result.machine, "torch": torch.__version__})
    layer = f"{sizes[0]}x{sizes[1]}, {rows} row{'s' if rows > 1 else ''} of {name}, {weights} weights, "
    _print_rows(f"{layer}{activations} activations", result, f"F.linear {name}")


def _sizes(shape: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", shape)
    if match is None or 0 in (sizes := (int(match[1]), int(match[2]))):
        raise typer.BadParameter(f"--shape is {shape!r}, expected out_features x in_features, such as 4096x4096")
    return sizes


def _config(weights: str, activations: str) -> "BitQuantConfig":
    from bitcore import BitQuantConfig

    if weights == "int4":
        return BitQuantConfig.int4().model_copy(update={"activation_dtype": activations})
    return BitQuantConfig(storage_format=weights, activation_dtype=activations)


def _print_rows(title: str, result: "Bench", baseline: str) -> None:
    against = next(row.seconds for row in result.results if row.name == baseline)
    rows: list[tuple[object, ...]] = [
        (
            row.name,
            size(row.weight_bytes),
            row.weights_from,
            f"{row.seconds * 1e6:.1f}",
            f"{row.spread:.0%}",
            f"{row.bytes_per_s * 1e-9:.1f}",
            f"{row.ops_per_s * 1e-9:.0f}",
            f"{against / row.seconds:.2f}x",
        )
        for row in result.results
    ]
    for name, rate in result.limits.items():
        rates = (f"{rate * 1e-9:.1f}", None) if "bytes" in name else (None, f"{rate * 1e-9:.0f}")
        rows.append((f"limit: {LIMITS[name]}", None, None, None, None, *rates, None))
    print_table(f"{title}; faster: than {baseline}", COLUMNS, rows)
    if statistics.median(row.spread for row in result.results) > UNSTEADY:
        say("note", f"most times spread by more than {UNSTEADY:.0%}: something else runs here, so medians say little")
