"""Writing safetensors files tensor by tensor: the library's own writer needs all of them at once.

    uint64 length of the header, the header, the tensors' bytes without gaps          little endian, row-major

The header is JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}.
"""

import ctypes
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitcore.exceptions import ArgumentError, DtypeError, ShapeError
from bitmodels.formats.safetensors_dtypes import NAMES
from bitmodels.progress import tracked
from bitmodels.replace_file import replace_file


@dataclass(frozen=True)
class OutgoingTensor:
    """A tensor to write, which `make` gives when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * self.dtype.itemsize


def write_safetensors(path: Path, tensors: Iterable[OutgoingTensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all; one tensor at a time is in memory.

    Raises:
        ArgumentError: two tensors have one name, or a dtype has none in safetensors.
        ShapeError, DtypeError: a tensor is made other than announced. What was at `path` stays.
    """
    tensors = list(tensors)
    header = _header(tensors, metadata)
    with replace_file(path) as temporary, temporary.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for outgoing in tracked(tensors, "writing"):
            tensor = outgoing.make()
            if tuple(tensor.shape) != outgoing.shape:
                raise ShapeError(outgoing.name, f"of shape {list(tensor.shape)}", str(list(outgoing.shape)))
            if tensor.dtype != outgoing.dtype:
                raise DtypeError(outgoing.name, tensor.dtype, str(outgoing.dtype))
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            file.write((ctypes.c_uint8 * raw.numel()).from_address(raw.data_ptr()))


def _header(tensors: list[OutgoingTensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for tensor in tensors:
        if tensor.name in entries:
            raise ArgumentError("tensors", f"with two of name {tensor.name!r}", "one of each name")
        if tensor.dtype not in NAMES:
            raise ArgumentError(tensor.name, tensor.dtype, f"one of {', '.join(map(str, NAMES))}")
        end = begin + tensor.nbytes
        entries[tensor.name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8)  # the tensors begin at a multiple of 8
