"""What the GPU kernels are asked for on an H200, and what a run came to. Needs no GPU and no PyTorch.

Microseconds of a whole call in bf16, activation quantization included, weights from memory. Batch 1 is 1.25 times the
time of a plain read of the weights + 0.5 for the quantization, batches 4 and 16 1.5 times + 0.5; batch 64 is 1.7 times
faster than fp8 at the large shapes, batch 256 within 1.1 times of fp8; from 1024 on 1.4 to 2 times faster than bf16.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gpu_rows import BASE3, BF16, DENSE, FP8, TWO_BIT, WEIGHT_ONLY, EagerRow, Row, Run, Shape, size_of

GOAL_SHAPES: tuple[Shape, ...] = ((2560, 2560), (4096, 4096), (11008, 4096), (8192, 8192), (28672, 8192))
GOALS: dict[tuple[str, int], tuple[float, ...]] = {
    (TWO_BIT, 1): (2.9, 3.6, 5.7, 7.2, 18.5),
    (TWO_BIT, 4): (3.4, 4.2, 6.8, 8.5, 22),
    (TWO_BIT, 16): (3.4, 4.2, 6.8, 8.5, 22),
    (TWO_BIT, 64): (4.2, 5.2, 9, 12, 34),
    (TWO_BIT, 256): (6.6, 10.5, 21, 29, 100),
    (TWO_BIT, 1024): (14, 28, 70, 98, 340),
    (TWO_BIT, 4096): (48, 115, 310, 430, 1550),
    (WEIGHT_ONLY, 1): (3.0, 3.8, 6, 7.6, 20),
    (WEIGHT_ONLY, 1024): (21, 46, 122, 177, 770),
}
TRITON_AGAINST_CUDA = {1: 1.3, 4: 1.3, 16: 1.3, 1024: 1.15, 4096: 1.15}  # at most, by batch
BASE3_SHAPE = (28672, 8192)
NO_WORSE = 1.05  # times F.linear's error: both are one rounding to bf16 of nearly the same sums
EAGER_RIVAL = "nn.Linear bf16"


@dataclass
class Answer:
    """One thing that is asked for: `kind` is common to those that are counted together."""

    kind: str
    case: str
    asked: str
    measured: str
    is_reached: bool


def goal_of(shape: Shape, batch: int, layer: str) -> float | None:
    """Microseconds, or None where nothing is asked for."""
    goals = GOALS.get((layer, batch))
    return goals[GOAL_SHAPES.index(shape)] if goals and shape in GOAL_SHAPES else None


def answers(run: Run) -> list[Answer]:
    """Everything that `run` can answer."""
    return [*_exactness(run), *_times(run), *_rivals(run), *_triton(run), *_base3(run), *_errors(run), *_eager(run)]


def _exactness(run: Run) -> Iterator[Answer]:
    for kernel in run.kernels:
        own = [row for row in run.rows if row.name == kernel]
        checked, equal = sum(row.checked for row in own), sum(row.equal for row in own)
        if checked:
            kind = f"{kernel}: outputs equal to the reference kernel's, bit for bit"
            yield Answer(kind, "", f"{checked:,}", f"{equal:,}", equal == checked)
        graphs = [row for row in own if row.repeatable is not None]
        same = sum(bool(row.repeatable) for row in graphs)
        if graphs:
            kind = f"{kernel}: graphs that give the bits of an eager call"
            yield Answer(kind, "", f"{len(graphs)}", f"{same}", same == len(graphs))


def _times(run: Run) -> Iterator[Answer]:
    for row in _ours(run):
        goal = goal_of(row.shape, row.batch, row.layer)
        if row.microseconds and goal is not None:
            reached = row.microseconds <= goal
            yield Answer(f"{row.name}: time", _where(row), f"{goal:g} µs", f"{row.microseconds:.2f} µs", reached)


def _rivals(run: Run) -> Iterator[Answer]:
    for row in _ours(run):
        for rival in (BF16, FP8):
            other = run.find(row.shape, row.batch, rival, DENSE)
            if row.layer == TWO_BIT and row.microseconds and other is not None and other.microseconds:
                times = other.microseconds / row.microseconds
                yield Answer(f"{row.name}: against {rival}", _where(row), "1.00x", f"{times:.2f}x", times >= 1)


def _triton(run: Run) -> Iterator[Answer]:
    for row in _ours(run):
        most = TRITON_AGAINST_CUDA.get(row.batch)
        cuda = run.find(row.shape, row.batch, "cuda", row.layer)
        if row.name == "triton" and row.microseconds and most and cuda is not None and cuda.microseconds:
            share = row.microseconds / cuda.microseconds
            yield Answer("triton: time over cuda's", _where(row), f"at most {most:.2f}", f"{share:.2f}", share <= most)


def _base3(run: Run) -> Iterator[Answer]:
    for row in _ours(run):
        two_bit = run.find(row.shape, 1, row.name, TWO_BIT)
        if row.layer == BASE3 and row.shape == BASE3_SHAPE and row.microseconds and two_bit and two_bit.microseconds:
            times = two_bit.microseconds / row.microseconds
            yield Answer(f"{row.name}: base3 against 2bit", _where(row), "1.00x", f"{times:.2f}x", times >= 1)


def _errors(run: Run) -> Iterator[Answer]:
    for row in _ours(run):
        dense = run.find(row.shape, row.batch, BF16, DENSE)
        if row.layer == WEIGHT_ONLY and row.error is not None and dense is not None and dense.error is not None:
            reached = row.error <= dense.error * NO_WORSE
            asked = f"{dense.error:.2e}, {BF16}'s"
            yield Answer(f"{row.name}: error against float64", _where(row), asked, f"{row.error:.2e}", reached)


def _eager(run: Run) -> Iterator[Answer]:
    dense: dict[int, EagerRow] = {row.part: row for row in run.eager if row.name == EAGER_RIVAL}
    for row in run.eager:
        rival = dense.get(row.part)
        if row.name == EAGER_RIVAL or rival is None:
            continue
        for what in ("pipelined", "one_call"):
            own, other = getattr(row, what), getattr(rival, what)
            if own is not None and other is not None:
                kind = f"{row.name}: eager call, batch 1, 256x256, {what.replace('_', ' ')}"
                yield Answer(kind, "", f"{other:.1f} µs, {EAGER_RIVAL}'s", f"{own:.1f} µs", own <= other)


def _ours(run: Run) -> list[Row]:
    """Kernel by kernel."""
    return [row for kernel in run.kernels for row in run.rows if row.name == kernel]


def _where(row: Row) -> str:
    config = "" if row.layer == TWO_BIT else f" {row.layer}"
    return f"{size_of(row.shape)}, batch {row.batch}{config}"
