"""Measures tiles on this GPU and keeps the best: python -m bitcore.kernels.triton.tune --shapes 4096x4096 11008x4096.

A time is that of the whole call, activations included, in a CUDA graph over copies of the weight that do not fit in the
L2 cache. The table goes to the user's cache directory (tiles.py), or where --output says.
"""

import argparse
from math import inf
from pathlib import Path
from statistics import median

import torch
from triton.runtime.errors import OutOfResources

from bitcore.config import BitQuantConfig
from bitcore.kernels.compiled import operator_mode
from bitcore.kernels.triton.launch import Call, launch
from bitcore.kernels.triton.operator import read_mode
from bitcore.kernels.triton.tiles import (
    TOKEN_CLASSES,
    GemvTile,
    Tile,
    TunedRow,
    gpu_name,
    own_folder,
    table_name,
    write_rows,
)
from bitcore.packed_weight import PackedWeight

CONFIGS = {
    "2bit": BitQuantConfig(),
    "base3": BitQuantConfig(storage_format="base3"),
    "int4": BitQuantConfig(weight_dtype="int4", weight_granularity="per_channel"),
    "2bit weight-only": BitQuantConfig.weight_only(),
    "base3 weight-only": BitQuantConfig(storage_format="base3", activation_dtype="float32"),
}
SHAPES = ("2560x2560", "4096x4096", "11008x4096", "8192x8192", "28672x8192")
COLD_BYTES = 800 * 10**6  # of weights that a graph reads: neither the L2 cache nor its page tables hold them
ROUNDS = 7
PASSES = 2  # over all candidates: a GPU that has had nothing to do is slower at first
CANDIDATES: dict[int, tuple[Tile | GemvTile, ...]] = {  # by token class
    1: tuple(
        GemvTile(features, warps, programs, words, ahead)
        for features, warps, programs in (
            (4, 4, 4),
            (8, 4, 2),
            (8, 4, 3),
            (8, 4, 4),
            (16, 4, 2),
            (16, 4, 4),
            (16, 8, 2),
        )
        for words in (128, 256, 512)
        for ahead in (0, 1)
    ),
    8: (
        Tile(8, 16, 2, 64, 2, 3),
        Tile(8, 16, 2, 64, 2, 4),
        Tile(8, 16, 4, 32, 4, 4),
        Tile(8, 16, 4, 64, 4, 3),
        Tile(8, 32, 4, 64, 4, 3),
        Tile(8, 32, 4, 64, 4, 3, 2),
        Tile(8, 32, 4, 128, 4, 3),
        Tile(8, 32, 4, 128, 4, 3, 2),
        Tile(8, 32, 4, 128, 4, 4),
        Tile(8, 64, 1, 128, 4, 4),
        Tile(8, 64, 1, 128, 4, 5),
        Tile(8, 64, 2, 32, 2, 4, 2),
    ),
    16: (
        Tile(16, 16, 2, 64, 2, 4),
        Tile(16, 16, 4, 64, 4, 3),
        Tile(16, 32, 4, 64, 4, 3),
        Tile(16, 32, 4, 128, 4, 3, 2),
        Tile(16, 32, 4, 128, 4, 4),
        Tile(16, 64, 1, 128, 4, 3),
        Tile(16, 64, 1, 128, 4, 4),
        Tile(16, 64, 1, 128, 4, 4, 2),
        Tile(16, 64, 1, 256, 4, 6, 1),
        Tile(16, 64, 2, 32, 2, 4, 2),
    ),
    64: (
        Tile(32, 64, 1, 128, 4, 3),
        Tile(64, 64, 1, 64, 4, 3),
        Tile(64, 64, 1, 64, 4, 3, 1),
        Tile(64, 64, 1, 128, 4, 3, 2),
        Tile(64, 64, 1, 128, 4, 4, 2),
        Tile(64, 128, 1, 64, 4, 3, 2),
        Tile(64, 128, 1, 64, 4, 4, 1),
    ),
    256: (
        Tile(64, 64, 1, 64, 4, 3, 1),
        Tile(64, 64, 1, 64, 4, 4, 1),
        Tile(64, 64, 1, 128, 4, 3, 2),
        Tile(128, 64, 1, 32, 4, 4, 1),
        Tile(128, 64, 1, 64, 4, 3),
        Tile(128, 128, 1, 32, 4, 3, 2),
        Tile(128, 128, 1, 64, 4, 3, 2),
    ),
    1024: (
        Tile(64, 64, 1, 32, 4, 4, 1),
        Tile(128, 64, 1, 32, 4, 4, 1),
        Tile(128, 128, 1, 32, 4, 4),
        Tile(128, 128, 1, 32, 4, 3, 2),
        Tile(128, 128, 1, 64, 4, 3),
        Tile(128, 128, 1, 64, 4, 3, 2),
    ),
    4096: (
        Tile(64, 128, 1, 64, 4, 3, 2),
        Tile(128, 128, 1, 32, 4, 3, 2),
        Tile(128, 128, 1, 32, 8, 3, 1),
        Tile(128, 128, 1, 64, 4, 3),
        Tile(128, 128, 1, 64, 4, 3, 2),
    ),
}


def main() -> None:
    """Measures what the arguments ask for and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="NxK", help="out_features x in_features")
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKEN_CLASSES, choices=TOKEN_CLASSES)
    parser.add_argument("--output", type=Path, help="where to write the table")
    arguments = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device())
    path = arguments.output or own_folder() / table_name(gpu_name(device))
    rows: list[TunedRow] = []
    for name in arguments.configs:
        for shape in arguments.shapes:
            out_features, in_features = map(int, shape.split("x"))
            weight = PackedWeight.from_float(torch.randn(out_features, in_features, device=device), CONFIGS[name])
            for tokens in arguments.tokens:
                row = best(CONFIGS[name], weight, tokens)
                print(f"{name} {shape}, {tokens} tokens: {row.microseconds:.2f} us with {row.tile}", flush=True)
                rows.append(row)
                write_rows(path, rows)  # what has been measured is kept if this is stopped
    print(f"wrote {path}")


def best(config: BitQuantConfig, weight: PackedWeight, tokens: int) -> TunedRow:
    """The fastest of the candidates for bfloat16 x [tokens, in_features]."""
    x = torch.randn(tokens, weight.in_features, device=weight.packed.device, dtype=torch.bfloat16)
    y = x.new_empty(tokens, weight.packed.shape[0])
    copies = [weight.packed.clone() for _ in range(max(3, min(256, COLD_BYTES // weight.packed.nbytes)))]
    calls = [
        Call(x, packed, weight.scale, weight.zero_point, None, y, *read_mode(operator_mode(config)))
        for packed in copies
    ]
    timed: dict[Tile | GemvTile, float] = {}
    candidates = CANDIDATES[tokens] if calls[0].one_launch or tokens > 1 else CANDIDATES[8]
    for tile in candidates * PASSES:
        try:
            timed[tile] = min(microseconds(calls, tile), timed.get(tile, inf))
        except OutOfResources:
            continue  # this GPU has less shared memory
    tile = min(timed, key=timed.__getitem__)
    return TunedRow(
        storage_format=config.packed_format,
        activations=calls[0].activations,
        tokens=tokens,
        out_features=weight.packed.shape[0],
        in_features=weight.in_features,
        tile=tile,
        microseconds=round(timed[tile], 2),
    )


def microseconds(calls: list[Call], tile: Tile | GemvTile) -> float:
    """The median time of a call."""
    launch(calls[0], tile)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            launch(call, tile)
    times: list[float] = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return median(times)


if __name__ == "__main__":
    main()
