"""What commands print: results on stdout, as tables or one JSON object; everything else on stderr."""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from rich import box, progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

Item = TypeVar("Item")

STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
WIDTH_OF_FILES = 160  # of tables that go to a file or a pipe


class PipedConsole(Console):
    """A Console that leaves a pipe without a reader to `guarded`, and its exit code."""

    def on_broken_pipe(self) -> None:
        """What rich calls where it met one."""
        raise BrokenPipeError


stderr = PipedConsole(stderr=True, soft_wrap=True, highlight=False)


def say(kind: str, message: str) -> None:
    """Prints `kind: message` on stderr; `kind` is one of STYLES."""
    stderr.print(Text.assemble((f"{kind}:", STYLES[kind]), " ", message))


def print_json(value: Any) -> None:
    """The one JSON object of --json."""
    print(json.dumps(value, indent=2))


def print_facts(facts: Mapping[str, object]) -> None:
    """A fact a line."""
    width = max(map(len, facts))
    for name, fact in facts.items():
        _stdout().print(Text.assemble((f"{name:<{width}}", "bold"), "  ", str(fact)), soft_wrap=True)


def print_table(title: str, columns: dict[str, str], rows: Iterable[Iterable[object]]) -> None:
    """A table. `columns` has each column's heading and "left" or "right"."""
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, justify in columns.items():
        table.add_column(Text(heading), justify="right" if justify == "right" else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    _stdout().print(table)


def track(items: Collection[Item], what: str) -> Iterable[Item]:
    """`items`, with a progress bar on stderr if that is a terminal."""
    return progress.track(
        items, what, len(items), console=stderr, transient=True, disable=not stderr.is_terminal, update_period=0.2
    )


def size(nbytes: float) -> str:
    """Bytes in a unit that suits their number: 1 kB is 1000 bytes."""
    for unit in ("bytes", "kB", "MB"):
        if nbytes < 999.5:
            return f"{nbytes:.0f} {unit}" if unit == "bytes" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} GB"


def _stdout() -> Console:
    console = PipedConsole(highlight=False)
    return console if console.is_terminal else PipedConsole(highlight=False, width=WIDTH_OF_FILES)
