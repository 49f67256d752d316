"""`bitlab inspect`: what is in a checkpoint."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitcli.options import Json
from bitcli.output import print_facts, print_json, print_table, size, track

if TYPE_CHECKING:
    from bitmodels.formats.inspection import TensorReport

COLUMNS = {
    "tensor": "left",
    "number": "right",
    "shape": "left",
    "encoding": "left",
    "bytes": "right",
    "zeros": "right",
    "scales": "left",
}


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE_OR_DIR", show_default=False, help="A safetensors or GGUF file, or a folder with a checkpoint."
        ),
    ],
    every: Annotated[bool, typer.Option("--all", help="A line for each tensor, not one for all layers.")] = False,
    json: Json = False,
) -> None:
    """Show the tensors of a checkpoint: shapes, encodings, bytes, scales.

    The file is read through, so every ternary weight and scale in it has been checked when the table appears.
    """
    from bitmodels.formats import inspect_checkpoint
    from bitmodels.progress import show_progress

    with show_progress(track):
        report = inspect_checkpoint(path)
    if json:
        print_json(report.model_dump(mode="json") | {"nbytes": report.nbytes})
        return
    print_facts(
        {
            "path": report.path,
            "format": report.container,
            "architecture": report.architecture or "unknown",
            "tensors": len(report.tensors),
            "bytes": f"{report.nbytes:,}: "
            + ", ".join(f"{name} {size(nbytes)}" for name, nbytes in sorted(report.bytes_by_encoding.items())),
        }
    )
    groups: dict[tuple[object, ...], list[TensorReport]] = {}
    for tensor in report.tensors:
        name = tensor.name if every else re.sub(r"(?<=\.)\d+(?=\.)", "*", tensor.name)
        groups.setdefault((name, tensor.shape, tensor.encoding), []).append(tensor)
    title = "tensors" if every else "tensors; * is the number of a layer (--all shows each)"
    print_table(title, COLUMNS, (_row(str(key[0]), group) for key, group in groups.items()))


def _row(name: str, group: "list[TensorReport]") -> tuple[object, ...]:
    first = group[0]
    zeros = [tensor.zeros for tensor in group if tensor.zeros is not None]
    scales = [tensor.scale for tensor in group if tensor.scale is not None]
    smallest = min((scale.smallest for scale in scales), default=0.0)
    largest = max((scale.largest for scale in scales), default=0.0)
    granularities = sorted({scale.granularity for scale in scales})
    return (
        name,
        len(group),
        ("x".join(map(str, first.shape)) or "scalar") + (" bytes" if first.name.endswith(".weight_packed") else ""),
        first.encoding,
        size(sum(tensor.nbytes for tensor in group)),
        f"{sum(zeros) / len(zeros):.1%}" if zeros else None,
        f"{', '.join(granularities)}, {smallest:.4g} to {largest:.4g}" if scales else None,
    )
