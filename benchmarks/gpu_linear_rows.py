"""The measurements of bench_gpu_linear.py: one Row a competitor and batch."""

import torch
from gpu_competitors import RIVALS, Check, Competitor, Packed, Read, Weights, same_bits
from gpu_rows import BASE3, FLOOR, TWO_BIT, WEIGHT_ONLY, Row

from bitcli.measurement.gpu_graph_timing import CapturedCalls

SHAPES = ((2560, 2560), (4096, 4096), (11008, 4096), (8192, 8192), (28672, 8192))  # out_features, in_features
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
WEIGHT_ONLY_BATCHES = (1, 1024)
QUICK_SHAPES = ((4096, 4096), (28672, 8192))
QUICK_BATCHES = (1, 16, 256, 1024)
MOST_COMPARED_BATCH = 256  # with the reference kernel
MOST_COMPUTED_BATCH = 1024  # with float64


class DeviceLostError(RuntimeError):
    """The GPU answers no more in this process: a kernel has written where it may not."""


def plan(
    kernels: list[str], rivals: list[str], batches: tuple[int, ...], only_weight_only: bool
) -> list[tuple[str, str, tuple[int, ...]]]:
    """What is measured at each shape: name, config of BitLinear or a rival's name, batches."""
    of_weight_only = tuple(batch for batch in batches if batch in WEIGHT_ONLY_BATCHES)
    of_base3 = tuple(batch for batch in batches if batch == 1)
    if only_weight_only:
        layers = {WEIGHT_ONLY: of_weight_only}
        of_rivals, floors = of_weight_only, [TWO_BIT]
    else:
        layers = {TWO_BIT: batches, WEIGHT_ONLY: of_weight_only, BASE3: of_base3}
        of_rivals, floors = batches, [TWO_BIT, BASE3] if of_base3 else [TWO_BIT]
    steps = [(FLOOR, layer, (1,)) for layer in floors]
    steps += [(kernel, layer, own) for layer, own in layers.items() for kernel in kernels]
    for rival in rivals:
        steps.append((RIVALS[rival].name, rival, tuple(b for b in of_rivals if b >= RIVALS[rival].least_batch)))
    return [step for step in steps if step[2]]


def competitor_of(weights: Weights, name: str, layer: str) -> Competitor:
    """The competitor of a step of `plan`."""
    if name == FLOOR:
        return Read(weights, layer)
    return RIVALS[layer](weights) if layer in RIVALS else Packed(weights, name, layer)


def measure(competitor: Competitor, batch: int, part: int) -> Row:
    """Checks and times; a failure becomes the row's note.

    Raises:
        DeviceLostError: nothing more can be measured in this process.
    """
    row = Row(competitor.shape, batch, competitor.name, competitor.layer, part, weight_bytes=competitor.weight_bytes)
    try:
        with torch.inference_mode(), competitor.forced():
            _measure(competitor, row)
    except Exception as error:  # a row says what went wrong, the others go on
        row.microseconds, row.note = None, reason_of(error)
        _check_device()
    return row


def _measure(competitor: Competitor, row: Row) -> None:
    x = competitor.tokens(row.batch, 0)
    most = MOST_COMPARED_BATCH if row.layer in (TWO_BIT, BASE3) else MOST_COMPUTED_BATCH
    checks = row.name != FLOOR and row.batch <= most
    if checks:
        _add(row, competitor.check(0, x, competitor.call(0, x, competitor.variants[0])))
    row.nodes = len(competitor.copies)
    for variant in competitor.variants:
        captured = CapturedCalls(lambda index, variant=variant: competitor.call(index, x, variant), row.nodes)
        timing = captured.time()
        if row.microseconds is None or timing.microseconds < row.microseconds:
            row.microseconds, row.spread = timing.microseconds, timing.spread
            row.note = "" if variant is None else str(variant)
    if isinstance(competitor, Packed):
        _check_replay(competitor, captured, x, row, checks)
    elif checks:  # as many draws as of those that are replayed
        x, last = competitor.tokens(row.batch, 1), row.nodes - 1
        _add(row, competitor.check(last, x, competitor.call(last, x, competitor.variants[0])))


def _check_replay(competitor: Packed, captured: CapturedCalls, x: torch.Tensor, row: Row, checks: bool) -> None:
    """Replays the graph on new data, over an output of NaN, and calls the last layer outside of the graph beside it."""
    x.copy_(competitor.tokens(row.batch, 1))
    captured.y.fill_(float("nan"))
    captured.replay()
    torch.cuda.synchronize()
    last = row.nodes - 1
    row.repeatable = same_bits(captured.y, competitor.call(last, x, None)) == captured.y.numel()
    if checks:
        _add(row, competitor.check(last, x, captured.y))


def _add(row: Row, check: Check) -> None:
    row.checked += check.checked
    row.equal += check.equal
    if check.error is not None and (row.error is None or not check.error <= row.error):  # NaN is the largest
        row.error = check.error


def reason_of(error: BaseException) -> str:
    """One line: the error, and the first of those it came from (a capture says only that it was broken off)."""
    first = error
    while first.__context__ is not None:
        first = first.__context__
    return _line_of(error) if first is error else f"{_line_of(error)}; first {_line_of(first)}"


def _line_of(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {'; '.join(lines)}"[:300]


def _check_device() -> None:
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise DeviceLostError(reason_of(error)) from error
