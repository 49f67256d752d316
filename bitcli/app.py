"""The commands of `bitlab`. Their files import no torch: what a command does is imported when it runs."""

from typing import Annotated

import typer

from bitcli.commands.bench import bench
from bitcli.commands.convert import convert
from bitcli.commands.export import export
from bitcli.commands.generate import generate
from bitcli.commands.info import info
from bitcli.commands.inspect import inspect
from bitcli.commands.verify import verify
from bitcli.guard import guarded

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")

for _command in (info, bench, inspect, convert, export, generate, verify):
    app.command(no_args_is_help=_command not in (info, bench))(guarded(_command))


def _print_version(wanted: bool) -> None:
    if wanted:
        from bitcore.machine_report import versions

        print(f"bitlab {versions()}")
        raise typer.Exit


@app.callback()
def bitlab(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train, pack and run 1.58-bit networks: measure, inspect, convert, run and check models.

    Exit codes: 0 done; 1 `verify` found a difference; 2 wrong usage or input; 3 an error that was not foreseen;
    130 interrupted; 141 nobody read the output, as in `bitlab info | head -1`.
    """
