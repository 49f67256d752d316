"""Where a command writes: something new, or with --overwrite in place of what is there; whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitcore.exceptions import ArgumentError

MARK_OF_A_MODEL = "config.json"


@contextmanager
def new_directory(path: Path, overwrite: bool) -> Iterator[Path]:
    """An empty directory that becomes `path` when the block ends, and is deleted if it raises.

    With `overwrite` a directory at `path` is replaced whole, so it must be a model's: with a config.json, and no
    directories in it.

    Raises:
        ArgumentError: `path` cannot be made or replaced; the block has not been entered.
    """
    _check(path, overwrite)
    if path.exists():
        if not path.is_dir():
            raise ArgumentError("DST", f"{path}, a file", "a folder")
        inside = list(path.iterdir())
        if any(entry.is_dir() for entry in inside) or not (path / MARK_OF_A_MODEL).exists():
            expected = f"one with {MARK_OF_A_MODEL} and no folders in it: --overwrite replaces a model, and all of it"
            raise ArgumentError("DST", f"{path}, a folder of something else", expected)
    beside = path.resolve()
    made, old = (beside.with_name(f".{beside.name}.{secrets.token_hex(4)}") for _ in range(2))
    made.mkdir()
    try:
        yield made
        if path.exists():
            beside.rename(old)
        made.rename(beside)
    except BaseException:
        if old.exists() and not beside.exists():
            old.rename(beside)
        raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_new_file(path: Path, overwrite: bool) -> None:
    """Raises ArgumentError where a file cannot be written to `path`; writers replace files in one step."""
    _check(path, overwrite)
    if path.is_dir():
        raise ArgumentError("DST", f"{path}, a folder", "a file")


def _check(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise ArgumentError("DST", f"{path}, which exists", "a new path, or --overwrite")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise ArgumentError("DST", path, f"in a folder that exists: make {folder} first")
    if not os.access(folder, os.W_OK):
        raise ArgumentError("DST", path, f"in a folder that can be written to: {folder} cannot")
