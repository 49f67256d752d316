"""Programs: the options that all of them have, and how they end when a data file is wrong."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from common.data_files import DataFileError

Compare = Annotated[
    bool, typer.Option("--compare", help="Train the fp32 twin too: same initial weights, same data, same steps.")
]
Seed = Annotated[int, typer.Option(min=0, help="Decides on initial weights, the order of the data and dropout.")]
Steps = Annotated[int, typer.Option(min=1, help="Optimizer steps.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Items a step.")]
LearningRate = Annotated[float, typer.Option(min=0.0, help="Its peak.")]
DenseLearningRate = Annotated[float, typer.Option(min=0.0, help="Its peak for the fp32 twin.")]


def _usable(device: str) -> str:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise typer.BadParameter(f"{device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


Device = Annotated[str, typer.Option(callback=_usable, help="Where to train: cpu, cuda, cuda:1, ...")]
Out = Annotated[
    Path, typer.Option(file_okay=False, help="Folder for the deployed checkpoint, the plot and results.json.")
]


def program(main: Callable[..., None]) -> typer.Typer:
    """The command-line program of `main`. A wrong option or data file is a sentence and exit code 2."""

    @wraps(main)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            main(*args, **kwargs)
        except DataFileError as error:
            Console(stderr=True, soft_wrap=True, highlight=False).print(f"[red]error:[/red] {error}")
            raise typer.Exit(2) from error

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(guarded)
    return app
