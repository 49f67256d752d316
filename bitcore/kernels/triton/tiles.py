"""How a product is cut: the tile measured to be best for a similar shape, or a default that fits every GPU.

Tables are JSON files of rows (`TunedRow`), one file a GPU: tune.py's in the user's cache directory is read first, then
the one shipped beside this module. Nothing is measured here.
"""

import os
from collections.abc import Iterable
from functools import cache, lru_cache
from math import log2
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter

SHIPPED = Path(__file__).parent / "tuned"
TOKEN_CLASSES = (1, 8, 16, 64, 256, 1024, 4096)  # a class serves up to so many tokens, the last one all others
Activations = Literal["int8", "16-bit", "32-bit"]


class Tile(NamedTuple):
    """Sizes of product.py's tile; `warps` and pipeline `stages` as Triton compiles it.

    boxes: how many of the two operands, x first, come to shared memory by TMA where the GPU and the call allow it.
    """

    tokens: int
    features: int
    slices: int
    bytes: int
    warps: int
    stages: int
    boxes: int = 0


class GemvTile(NamedTuple):
    """Sizes of gemv.py: `features` a step, `programs` on each multiprocessor, at least `words` of a row a piece.

    ahead: by how many steps rows are brought to L2 before they are loaded, where the GPU can.
    """

    features: int
    warps: int
    programs: int
    words: int = 256
    ahead: int = 0


class TunedRow(BaseModel):
    """The best tile for up to `tokens` tokens of a layer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    storage_format: Literal["2bit", "base3", "int4"]
    activations: Activations
    tokens: int
    out_features: int
    in_features: int
    tile: Tile | GemvTile
    microseconds: float


ROWS = TypeAdapter(list[TunedRow])


def token_class(tokens: int) -> int:
    """The smallest of TOKEN_CLASSES that serves `tokens`."""
    return next((limit for limit in TOKEN_CLASSES if tokens <= limit), TOKEN_CLASSES[-1])


@lru_cache(maxsize=4096)
def choose_tile(
    gpu: str,
    storage_format: str,
    activations: Activations,
    tokens_at_most: int,
    out_features: int,
    in_features: int,
    one_launch: bool,
) -> Tile | GemvTile:
    """The tile for a call of a token class: of its storage format where that was measured, else of 2bit.

    `one_launch` says whether gemv.py can serve, and then it does. Weights with a scale a group are cut by
    `default_tile`, one slice; so is base3, where it was not measured: 2bit's tiles may be too large for its operands.
    """

    def distance(row: TunedRow) -> float:
        return abs(log2(row.out_features / out_features)) + abs(log2(row.in_features / in_features))

    for measured_format in (storage_format, "2bit"):
        similar = [
            row
            for row in tuned_rows(gpu)
            if (row.storage_format, row.activations, row.tokens) == (measured_format, activations, tokens_at_most)
            and isinstance(row.tile, GemvTile) == one_launch
            and (one_launch or measured_format == storage_format or storage_format != "base3")
        ]
        if similar:
            return min(similar, key=distance).tile
    return default_tile(activations, tokens_at_most, one_launch=one_launch)


def default_tile(
    activations: Activations, tokens_at_most: int, *, one_launch: bool = False, slices: int = 4
) -> Tile | GemvTile:
    """A tile of at most 60 KB of shared memory."""
    if one_launch and tokens_at_most == 1:
        return GemvTile(8, 4, 2)
    if activations == "32-bit":
        return Tile(32, 32, 1, 32, 4, 2)
    if tokens_at_most <= 16:
        return Tile(16, 16, slices, 32, 4, 3)
    if activations == "16-bit" or tokens_at_most <= 256:
        return Tile(64, 64, 1, 32, 4, 3)
    return Tile(128, 128, 1, 32, 4, 3)


@cache
def tuned_rows(gpu: str) -> tuple[TunedRow, ...]:
    """The rows of the user's own table of this GPU, else of the shipped one."""
    for folder in (own_folder(), SHIPPED):
        path = folder / table_name(gpu)
        if path.exists():
            return tuple(ROWS.validate_json(path.read_bytes()))
    return ()


def own_folder() -> Path:
    """Where tune.py writes."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitlab" / "triton"


def table_name(gpu: str) -> str:
    """The file of a GPU's table: "NVIDIA H200" has nvidia_h200.json."""
    return "_".join(gpu.lower().split()) + ".json"


def write_rows(path: Path, rows: Iterable[TunedRow]) -> None:
    """Writes a table, one row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(row.model_dump_json() for row in rows)
    path.write_text(f"[\n{lines}\n]\n")


@cache
def gpu_name(device: torch.device) -> str:
    """The GPU's name, "cpu" under the interpreter."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
