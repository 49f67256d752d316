"""Checkpoint: tensors by name, read one at a time."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from bitcore.exceptions import CheckpointError
from bitmodels.formats.encoded_weight import EncodedWeight

MAX_NAMES = 20  # of an error message


@dataclass(frozen=True)
class TensorEntry:
    """What is known of a tensor before it is read."""

    name: str
    shape: tuple[int, ...]  # of the weights, not of their bytes
    encoding: str  # "bitnet", "TQ2_0", ..., or a dtype: "float32"
    nbytes: int  # in the file


class Checkpoint(ABC):
    """A checkpoint on disk. Nothing but names, shapes and configuration is held; `read` opens the file each time.

    Iterating gives (name, tensor or EncodedWeight), tensor by tensor, so that whoever keeps the packed weights alone
    needs memory for them and for the largest tensor.
    """

    container: ClassVar[str]  # "safetensors" or "gguf"

    def __init__(self, path: Path, config: dict[str, Any], entries: Mapping[str, TensorEntry]) -> None:
        self.path = path
        self.config = config  # config.json, or GGUF's metadata
        self.entries = entries

    @abstractmethod
    def read(self, name: str) -> Tensor | EncodedWeight:
        """The tensor `name` in the dtype of the file, or the ternary weight as it is encoded.

        Raises:
            CheckpointError: there is no such tensor, or the file is damaged.
        """

    def parts(self, name: str, tensor: Tensor, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """What `read` gave for `name`, some rows at a time, so that no more of a file has to be in memory."""
        for begin in range(0, tensor.shape[0], rows):
            part = slice(begin, min(begin + rows, tensor.shape[0]))
            yield part, self._rows(name, tensor, part)

    def _rows(self, name: str, tensor: Tensor, part: slice) -> Tensor:
        return tensor[part]

    def __iter__(self) -> Iterator[tuple[str, Tensor | EncodedWeight]]:
        for name in self.entries:
            yield name, self.read(name)

    def check_shapes(self, expected: Mapping[str, Sequence[int]]) -> None:
        """Checks the names and shapes of all tensors, before any is read.

        Raises:
            CheckpointError: tensors are missing, unexpected or misshapen; the message lists them.
        """
        problems = [f"{name} is missing" for name in expected if name not in self.entries]
        problems += [f"{name} is not expected" for name in self.entries if name not in expected]
        problems += [
            f"{name} is of shape {list(self.entries[name].shape)}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in self.entries and self.entries[name].shape != tuple(shape)
        ]
        if problems:
            more = f"\n  and {len(problems) - MAX_NAMES} more" if len(problems) > MAX_NAMES else ""
            raise CheckpointError("\n  ".join([f"{self.path} does not fit:", *problems[:MAX_NAMES]]) + more)

    def _entry(self, name: str) -> TensorEntry:
        if name not in self.entries:
            raise CheckpointError(f"{self.path} has no tensor {name}")
        return self.entries[name]
