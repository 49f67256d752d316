"""A run as tables, for the terminal and for Markdown. Needs no GPU and no PyTorch."""

from typing import Any

from gpu_linear_goals import Answer, answers, goal_of
from gpu_rows import BASE3, BF16, DENSE, FLOOR, FP8, INT8, TWO_BIT, WEIGHT_ONLY, Row, Run, Shape, size_of

INT8_ISSUE_OPS_PER_S = 1.9e15  # of wgmma on an H200, measured with operands in shared memory
BF16_ISSUE_OPS_PER_S = 0.86e15

Table = list[list[str]]


def floor_of(run: Run, shape: Shape, batch: int, layer: str) -> float | None:
    """Microseconds of a plain read of the weights, or of the tensor cores, whichever take longer."""
    read = run.find(shape, 1, FLOOR, BASE3 if layer == BASE3 else TWO_BIT)
    if read is None or read.microseconds is None:
        return None
    issue = BF16_ISSUE_OPS_PER_S if layer == WEIGHT_ONLY else INT8_ISSUE_OPS_PER_S
    return max(read.microseconds, 2e6 * batch * shape[0] * shape[1] / issue)


def table(run: Run) -> Table:
    """Shapes by batches: the time of every kernel of ours beside goal, floor and rivals, in microseconds."""
    kernels = run.kernels
    head = ["shape", "batch", "goal", *(cell for kernel in kernels for cell in (kernel, "reached"))]
    head += ["floor", BF16, FP8, INT8, "bf16/ours", "fp8/ours"]
    cases = dict.fromkeys((row.shape, row.batch, row.layer) for row in run.rows if row.layer != DENSE)
    for row in run.rows:  # rivals alone, where no kernel was asked for
        if row.layer == DENSE and not any(case[:2] == (row.shape, row.batch) for case in cases):
            cases[row.shape, row.batch, TWO_BIT] = None
    order = [TWO_BIT, WEIGHT_ONLY, BASE3]
    lines = [head]
    for shape, batch, layer in sorted(cases, key=lambda case: (order.index(case[2]), case[0][0] * case[0][1], case[1])):
        rows = [run.find(shape, batch, kernel, layer) for kernel in kernels]
        rivals = [run.find(shape, batch, rival, DENSE) for rival in (BF16, FP8, INT8)]
        goal = goal_of(shape, batch, layer)
        line = [size_of(shape), f"{batch}" if layer == TWO_BIT else f"{batch} {layer}", number(goal)]
        for row in rows:
            line += [time(row), reached(row, goal)]
        line += [number(floor_of(run, shape, batch, layer)), *(time(rival) for rival in rivals)]
        fastest = min((row.microseconds for row in rows if row and row.microseconds), default=None)
        for rival in rivals[:2]:
            compared = fastest is not None and rival is not None and rival.microseconds is not None
            line.append(f"{rival.microseconds / fastest:.2f}x" if compared else "")
        lines.append(line)
    return lines


def limits_table(run: Run) -> Table:
    """A line for each part of the run."""
    head = ["part", "read TB/s", "copy TB/s", "empty node µs", "add node µs", "bf16 TFLOP/s", "fp8 TFLOP/s"]
    lines = [[*head, "int_mm TOP/s", "clocks, busy"]]
    for index, part in enumerate(run.parts):
        rates = [scaled(part[name], 1e-12) for name in ("read_bytes_per_s", "copy_bytes_per_s")]
        nodes = [scaled(part[name], 1) for name in ("empty_node", "add_node")]
        names = ("bf16_ops_per_s", "fp8_ops_per_s", "int8_ops_per_s")
        products = ["" if part[name] is None else f"{part[name] * 1e-12:.0f}" for name in names]
        lines.append([f"{index}", *rates, *nodes, *products, ", ".join(part["busy_clocks"].values())])
    return lines


def eager_table(run: Run) -> Table:
    """Calls outside of a graph."""
    lines = [["eager, 256x256, batch 1", "part", "pipelined µs", "spread", "one call µs"]]
    for row in run.eager:
        if row.pipelined is not None:
            lines.append(
                [row.name, f"{row.part}", f"{row.pipelined:.1f}", f"{row.spread:.0%}", f"{row.one_call or 0:.1f}"]
            )
    return lines


def summary(run: Run) -> list[str]:
    """The answers, counted by kind; those that are the only one of their kind in full."""
    kinds: dict[str, list[Answer]] = {}
    for answer in answers(run):
        kinds.setdefault(answer.kind, []).append(answer)
    lines = []
    for kind, own in kinds.items():
        only, good = own[0], sum(answer.is_reached for answer in own)
        if len(own) > 1 or only.case:
            lines.append(f"{kind}: {good} of {len(own)} reached")
        else:
            mark = "" if only.is_reached else " (not reached)"
            lines.append(f"{kind}: {only.measured}, asked for {only.asked}{mark}")
    wrong = [row for row in run.rows if row.is_wrong]
    return lines + [f"WRONG: {row.name} {row.layer} {size_of(row.shape)} batch {row.batch}" for row in wrong]


def notes(run: Run) -> list[str]:
    """Why something has no time, said once for all rows with the same reason."""
    reasons: dict[str, list[str]] = {}
    for row in run.rows:
        if row.microseconds is None:
            case = f"{size_of(row.shape)} {row.batch}"
            reasons.setdefault(f"{row.name} {row.layer}: {row.note}", []).append(case)
    lines = [f"{reason} [{len(cases)} not measured: {', '.join(cases[:8])}]" for reason, cases in reasons.items()]
    lines += [f"eager {row.name}: {row.note}" for row in run.eager if row.note]
    for index, part in enumerate(run.parts):
        lines += [f"limits of part {index}, {name}: {reason}" for name, reason in part["failures"].items()]
    return lines


def as_text(lines: Table) -> str:
    """Columns as wide as their longest cell; numbers end at the same place."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = [
        " ".join(cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(cells))
        for cells in ([*zip(line, widths, strict=True)] for line in lines)
    ]
    return "\n".join(row.rstrip() for row in rows)


def as_markdown(lines: Table) -> list[str]:
    head, *rest = lines
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rest)]


def time(row: Row | None) -> str:
    return "" if row is None or row.microseconds is None else f"{number(row.microseconds)}{'!' if row.is_wrong else ''}"


def reached(row: Row | None, goal: float | None) -> str:
    if row is None or row.microseconds is None or goal is None:
        return ""
    return "yes" if row.microseconds <= goal else "no"


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def scaled(value: Any, factor: float) -> str:
    return "" if value is None else f"{value * factor:.2f}"
