"""`bitlab verify`: every kernel against the reference kernel, on a model's own layers."""

import secrets
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitcli.options import Device, DtypeName, GgufFile, Json, Model, Revision, Seed, Threads
from bitcli.output import print_facts, print_json, print_table, say, track

if TYPE_CHECKING:
    from bitlayers import KernelCheck

DIFFERENCE_FOUND = 1


def verify(
    model: Model,
    kernel: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", show_default=False, help="Check this kernel alone. Can be given several times."),
    ] = None,
    dtype: Annotated[
        DtypeName | None, typer.Option(show_default=False, help="Of the inputs. Default: all three.")
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, show_default=False, help="Tokens of a random input. Default: 1, 2, 7 and 33."),
    ] = None,
    seed: Seed = None,
    threads: Threads = None,
    device: Device = "cpu",
    revision: Revision = None,
    gguf_file: GgufFile = None,
    json: Json = False,
) -> None:
    """Prove that every kernel here computes a model's layers as the reference does, bit for bit.

    Inputs are random batches and extremes: zeros, all at their largest, one outlier, ties, denormal numbers, NaN, Inf.
    With floating-point activations sums may be in another order, and outputs must agree within the rounding of that.
    Exit code 1: something differs; layer and kernel are named.
    """
    import torch

    from bitcli.machine import this_machine
    from bitcli.models import load_model, model_path
    from bitcore.exceptions import ArgumentError
    from bitlayers import BitLayer, check_kernels
    from bitlayers.kernel_check import BATCHES, DTYPES

    seed = secrets.randbelow(2**31) if seed is None else seed
    generator = torch.Generator().manual_seed(seed)
    dtypes = DTYPES if dtype is None else (getattr(torch, dtype),)
    with this_machine(threads, device) as on:
        loaded = load_model(model_path(model, revision, gguf_file)).to(on)
        layers = [(name, layer) for name, layer in loaded.named_modules() if isinstance(layer, BitLayer)]
        checks: list[tuple[str, KernelCheck]] = []
        for name, layer in track(layers, "checking"):
            checks += [(name, check) for check in check_kernels(layer, kernel, dtypes, batch or BATCHES, generator)]
    summary = _summary(checks)
    if not summary["kernels"]:
        reasons = (
            "; ".join(f"{row['kernel']}: {row['reason']}" for row in summary["unusable"]) or "it has no Bit layers"
        )
        expected = f"with Bit layers that a kernel can serve here ({reasons or 'it has none'})"
        raise ArgumentError("MODEL", f"{model}, where there is nothing to compare", expected)
    if json:
        print_json({"model": model, "seed": seed, "layers": len(layers), **summary})
    else:
        print_facts({"model": model, "layers": len(layers), "seed": seed})
        _print_kernels(summary)
    for row in summary["differences"]:
        say("error", "{layer}: {kernel}, {dtype}: {difference}".format(**row))
    if summary["differences"]:
        raise typer.Exit(DIFFERENCE_FOUND)


def _summary(checks: "list[tuple[str, KernelCheck]]") -> dict[str, list[dict[str, Any]]]:
    """What was compared, by kernel; each difference; why kernels cannot serve. `checks` are (layer, check)."""
    kernels: dict[str, dict[str, Any]] = {}
    unusable: dict[tuple[str, str], int] = {}
    differences = []
    for layer, check in checks:
        if check.unusable is not None:
            key = (check.kernel, check.unusable)
            unusable[key] = unusable.get(key, 0) + 1
            continue
        row = kernels.setdefault(check.kernel, {"kernel": check.kernel, "layers": set(), "outputs": 0})
        row["layers"].add(layer)
        row["outputs"] += check.compared
        if check.difference is not None:
            dtype = str(check.dtype).removeprefix("torch.")
            differences.append({"layer": layer, "kernel": check.kernel, "dtype": dtype, "difference": check.difference})
    return {
        "kernels": [{**row, "layers": len(row["layers"])} for row in kernels.values()],
        "differences": differences,
        "unusable": [
            {"kernel": kernel, "reason": reason, "checks": count} for (kernel, reason), count in unusable.items()
        ],
    }


def _print_kernels(summary: dict[str, list[dict[str, Any]]]) -> None:
    wrong = Counter(row["kernel"] for row in summary["differences"])
    rows: list[tuple[object, ...]] = []
    for row in summary["kernels"]:
        found = wrong[row["kernel"]]
        result = f"{found} checks differ" if found else "agrees with the reference"
        rows.append((row["kernel"], row["layers"], f"{row['outputs']:,}", result))
    rows += [(row["kernel"], None, None, f"not usable: {row['reason']}") for row in summary["unusable"]]
    columns = {"kernel": "left", "layers": "right", "outputs compared": "right", "result": "left"}
    print_table("kernels", columns, rows)
