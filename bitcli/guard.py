"""guarded: a command whose errors and warnings are sentences, with an exit code."""

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, Any

import typer

from bitcli.output import say

WRONG_INPUT, UNFORESEEN = 2, 3
CPU_ALLOCATOR = "DefaultCPUAllocator"  # in the RuntimeError that torch raises where a CPU's memory ends

Debug = Annotated[bool, typer.Option("--debug", help="Show where an error comes from, as a traceback.")]


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with an option --debug. Without it, an exception is one message on stderr and an exit code."""

    @wraps(command)
    def run(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        from bitcore.broken_pipe import quiet_without_a_reader

        with quiet_without_a_reader(), _warnings_as_sentences():
            try:
                command(*args, **kwargs)
            except (typer.Exit, typer.BadParameter, BrokenPipeError):
                raise
            except Exception as error:
                if debug:
                    raise
                message, exit_code = _explained(error)
                say("error", message)
                raise typer.Exit(exit_code) from None

    signature = inspect.signature(command)
    option = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, "debug": Debug}
    return run


def _explained(error: Exception) -> tuple[str, int]:
    """What to tell the user, and the exit code."""
    import torch

    from bitcore.exceptions import BitLabError, ConfigError

    wrong_fields = next((each for each in (error, error.__cause__) if isinstance(each, ConfigError)), None)
    if wrong_fields is not None:  # pydantic's own text has several lines a field
        sentences = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in wrong_fields.errors())
        return str(error).replace(str(wrong_fields), "; ".join(sentences)), WRONG_INPUT
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}", WRONG_INPUT
    if isinstance(error, (BitLabError, OSError)):
        return str(error), WRONG_INPUT
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or CPU_ALLOCATOR in str(error):
        return f"not enough memory: {error}", WRONG_INPUT
    return f"{type(error).__name__}: {error} (not foreseen: --debug shows where it comes from)", UNFORESEEN


@contextmanager
def _warnings_as_sentences() -> Iterator[None]:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        say("warning", str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
