"""BitLinear against PyTorch's matrix products on this GPU: bf16 in to bf16 out, activation quantization included, in
one run with the GPU's own limits.

    python benchmarks/bench_gpu_linear.py [--quick] [--json docs/benchmarks/gpu_linear.json]
    python benchmarks/gpu_linear_plots.py                    the report and the plot, also on a machine without a GPU

A call is timed as a node of a CUDA graph: up to 64 nodes, each with its own copy of the weights (800 MB of them where
64 copies are enough), caches flushed before each of 7 to 15 replays; medians. Before, up to batch 256, each output is
compared with the reference kernel's, bit for bit, and after once more in the graph, on new data. A long run can be had
in parts: `--budget 440` stops in time and writes what there is; the same command with `--resume FILE` goes on there.
Exits with 1 where an output was wrong.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from gpu_competitors import RIVALS, Weights
from gpu_eager import measure_eager
from gpu_limits import measure_limits
from gpu_linear_rows import (
    BATCHES,
    QUICK_BATCHES,
    QUICK_SHAPES,
    SHAPES,
    DeviceLostError,
    competitor_of,
    measure,
    plan,
    reason_of,
)
from gpu_linear_table import as_text, eager_table, limits_table, notes, summary, table
from gpu_rows import DENSE, Row, Run, Shape, size_of


def shape_of(text: str) -> Shape:
    """Reads OUTxIN, such as 4096x4096."""
    out_features, _, in_features = text.partition("x")
    if not (out_features.isdigit() and in_features.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape, expected OUTxIN, such as 4096x4096")
    return int(out_features), int(in_features)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=shape_of, nargs="+", metavar="OUTxIN", help="weights; default: all with goals")
    parser.add_argument("--batches", type=int, nargs="+", help=f"default: {' '.join(map(str, BATCHES))}")
    parser.add_argument("--kernels", nargs="*", default=["cuda", "triton"], help="default: cuda triton")
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=list(RIVALS), help="default: all")
    parser.add_argument("--only-weight-only", action="store_true", help="floating-point activations alone")
    parser.add_argument("--quick", action="store_true", help="two shapes, four batches")
    parser.add_argument("--json", type=Path, default=Path("docs/benchmarks/gpu_linear.json"), help="where to write")
    parser.add_argument("--resume", type=Path, metavar="JSON", help="keep the rows of an earlier part of the run")
    parser.add_argument(
        "--again", nargs="+", default=[], metavar="NAME", help="but measure these kernels or rivals again"
    )
    parser.add_argument(
        "--budget", type=float, default=float("inf"), metavar="SECONDS", help="start nothing after them"
    )
    parsed = parser.parse_args(arguments)
    parsed.shapes = tuple(parsed.shapes or (QUICK_SHAPES if parsed.quick else SHAPES))
    parsed.batches = tuple(parsed.batches or (QUICK_BATCHES if parsed.quick else BATCHES))
    return parsed


def steps_of(arguments: argparse.Namespace, run: Run) -> Iterator[tuple[Shape, str, str, tuple[int, ...]]]:
    """What is still to be measured: shape, name, layer, batches."""
    measured = {row.key for row in run.rows}
    for shape in arguments.shapes:
        for name, layer, batches in plan(
            arguments.kernels, arguments.rivals, arguments.batches, arguments.only_weight_only
        ):
            missing = tuple(batch for batch in batches if (shape, batch, name, key_of(layer)) not in measured)
            if missing:
                yield shape, name, layer, missing


def key_of(layer: str) -> str:
    return DENSE if layer in RIVALS else layer


def fill(run: Run, arguments: argparse.Namespace, deadline: float) -> None:
    """Measures what is missing in `run`, and writes it after every step."""
    part = len(run.parts) - 1
    weights: Weights | None = None
    for shape, name, layer, batches in list(steps_of(arguments, run)):
        if time.monotonic() > deadline:
            print("the budget is used up; --resume goes on from here", flush=True)
            return
        try:
            if weights is None or weights.shape != shape:
                weights = None
                torch.cuda.empty_cache()
                weights = Weights(shape)
            competitor = competitor_of(weights, name, layer)
        except Exception as error:  # a row says what went wrong, the others go on
            run.rows += [Row(shape, batch, name, key_of(layer), part, note=reason_of(error)) for batch in batches]
            continue
        told = []
        for batch in batches:
            if time.monotonic() > deadline:
                break
            row = measure(competitor, batch, part)
            run.rows.append(row)
            told.append(f"{batch}: {row.microseconds:.2f}" if row.microseconds else f"{batch}: -")
        what = name if layer in RIVALS else f"{name} {layer}"
        print(f"{size_of(shape)} {what} | {', '.join(told)}", flush=True)
        del competitor
        run.write(arguments.json)


def main() -> int:
    arguments = parse()
    deadline = time.monotonic() + arguments.budget
    if not torch.cuda.is_available():
        print("torch sees no GPU: nothing can be measured here", file=sys.stderr)
        return 2
    run = Run.read(arguments.resume) if arguments.resume else Run()
    run.forget(arguments.again)
    run.parts.append(asdict(measure_limits()))
    print(f"{run.parts[-1]['gpu']}, {run.parts[-1]['versions']}", flush=True)
    eager = [kernel for kernel in arguments.kernels if kernel not in {row.name for row in run.eager}]
    if eager and not arguments.only_weight_only:
        run.eager += measure_eager(eager, len(run.parts) - 1)
    try:
        fill(run, arguments, deadline)
    except DeviceLostError as error:
        print(f"the GPU answers no more, the last row says which call it was: {error}", flush=True)
    run.write(arguments.json)
    print("\n" + "\n".join(notes(run)))
    print("\n" + as_text(limits_table(run)))
    print("\n" + as_text(eager_table(run)))
    print("\n" + "\n".join(summary(run)))
    print("\n" + as_text(table(run)))
    return 1 if any(row.is_wrong for row in run.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
