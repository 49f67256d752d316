"""Reading GGUF files."""

import mmap
from math import prod
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bitcore.checks import check_positive
from bitcore.exceptions import ArgumentError, CheckpointError
from bitmodels.formats.checkpoint import Checkpoint, TensorEntry
from bitmodels.formats.encoded_weight import EncodedWeight
from bitmodels.formats.gguf_header import GgufTensor, read_header
from bitmodels.formats.gguf_types import PLAIN_TYPES, TERNARY_TYPES, plain_tensor, type_name


class GgufCheckpoint(Checkpoint):
    """A GGUF file. `config` is its metadata; names and shapes are the file's own, shapes slowest dimension first.

    A float32 tensor `X.scale` of one element belongs to the ternary `X.weight`, which it multiplies (llama.cpp's
    `bitnet` architecture), and has no entry of its own. Types that are neither ternary nor a dtype are dequantized to
    float32.

    Raises:
        CheckpointError: the file is no whole GGUF file.
        DependencyError: a tensor's type needs the `gguf` package, which is not installed.
    """

    container: ClassVar[str] = "gguf"

    def __init__(self, path: Path) -> None:
        header = read_header(path)
        self._tensors = header.tensors
        self._scale_of = {
            name: f"{name.removesuffix('.weight')}.scale"
            for name, tensor in header.tensors.items()
            if tensor.ggml_type in TERNARY_TYPES and f"{name.removesuffix('.weight')}.scale" in header.tensors
        }
        paired = set(self._scale_of.values())
        entries = {
            name: TensorEntry(name, tensor.shape, _encoding(tensor.ggml_type), tensor.nbytes)
            for name, tensor in header.tensors.items()
            if name not in paired
        }
        super().__init__(path, header.metadata, entries)

    def read(self, name: str) -> Tensor | EncodedWeight:
        """As Checkpoint.read."""
        self._entry(name)
        tensor = self._tensors[name]
        data = self._mapped(tensor)
        if tensor.ggml_type not in TERNARY_TYPES:
            return plain_tensor(tensor.ggml_type, data.clone(), tensor.shape)
        *rows, in_features = tensor.shape
        encoding = TERNARY_TYPES[tensor.ggml_type]
        return EncodedWeight(name, encoding, prod(rows), in_features, data, self._scale(name))

    def _scale(self, name: str) -> Tensor | None:
        if name not in self._scale_of:
            return None
        tensor = self._tensors[self._scale_of[name]]
        if tensor.shape != (1,) or tensor.ggml_type != 0:
            raise CheckpointError(
                f"{tensor.name} is {type_name(tensor.ggml_type)} {list(tensor.shape)}, expected F32 [1] beside {name}"
            )
        scale = self._mapped(tensor).clone().view(torch.float32)
        try:
            check_positive(tensor.name, scale)
        except ArgumentError as error:
            raise CheckpointError(f"{self.path}: {error}") from error
        return scale

    def _mapped(self, tensor: GgufTensor) -> Tensor:
        """The bytes of `tensor`, mapped from the file until they are dropped."""
        begin = tensor.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        end = tensor.offset + tensor.nbytes
        try:
            with self.path.open("rb") as file:
                pages = mmap.mmap(file.fileno(), end - begin, access=mmap.ACCESS_COPY, offset=begin)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path}: {tensor.name} cannot be read: {error}") from error
        return torch.frombuffer(pages, dtype=torch.uint8, count=tensor.nbytes, offset=tensor.offset - begin)


def _encoding(ggml_type: int) -> str:
    if ggml_type in PLAIN_TYPES:
        return str(PLAIN_TYPES[ggml_type][1]).removeprefix("torch.")
    return type_name(ggml_type)
