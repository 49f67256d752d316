"""The tensors of a safetensors file, or of several under an index, by name."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitcore.exceptions import ArgumentError, CheckpointError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_JSON_BYTES = 64 << 20  # an index of half a million tensors


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError where there is none."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes, expected at most {MAX_JSON_BYTES}")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def check_no_shards(directory: Path) -> None:
    """Raises ArgumentError if `directory` has an index: readers would follow it, past a new model.safetensors."""
    if (directory / INDEX_FILE).exists():
        expected = f"one without {INDEX_FILE}, whose shards would be read in place of what is written"
        raise ArgumentError("directory", directory, expected)


class SafetensorsFiles:
    """A safetensors file, or the model.safetensors[.index.json] of a directory.

    Raises:
        CheckpointError: a file is missing or damaged, or the index says other than its files.
    """

    def __init__(self, path: Path) -> None:
        self.metadata: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}  # as safetensors spells them: "BF16", "U8"
        self._file_of: dict[str, Path] = {}
        index = path / INDEX_FILE
        if path.is_dir() and index.exists():
            self._add_indexed(index)
        else:
            self._add_file(path / WEIGHTS_FILE if path.is_dir() else path)

    def read(self, name: str) -> Tensor:
        """The tensor `name`, mapped from its file: what is dropped leaves no memory in use."""
        with _opened(self._file_of[name]) as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def read_rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows of the tensor `name`, mapped by themselves."""
        with _opened(self._file_of[name]) as file:
            rows: Tensor = file.get_slice(name)[begin:end]
            return rows

    def _add_indexed(self, index: Path) -> None:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise CheckpointError(f'{index} has no "weight_map" from tensors to files')
        for file in sorted(set(weight_map.values())):
            if Path(file).name != file or not (index.parent / file).is_file():
                raise CheckpointError(f"{index} names {file!r}, which is no file beside it")
            self._add_file(index.parent / file)
        for name, file in weight_map.items():
            if name not in self._file_of:
                raise CheckpointError(f"{index} says that {name} is in {file}; it is in none of the files")
            if self._file_of[name].name != file:
                raise CheckpointError(f"{index} says that {name} is in {file}; it is in {self._file_of[name].name}")
        unlisted = sorted(set(self._file_of) - set(weight_map))
        if unlisted:
            raise CheckpointError(f"{index} does not list {', '.join(unlisted[:20])}")

    def _add_file(self, path: Path) -> None:
        with _opened(path) as file:
            self.metadata.update(file.metadata() or {})
            for name in file.keys():
                if name in self._file_of:
                    raise CheckpointError(f"{name} is in {self._file_of[name].name} and in {path.name}")
                entry = file.get_slice(name)
                self._file_of[name] = path
                self.shapes[name] = tuple(entry.get_shape())
                self.dtypes[name] = entry.get_dtype()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
