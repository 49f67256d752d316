"""GGUF files with other metadata, for the tests that read them."""

from pathlib import Path
from typing import Any

from torch import Tensor

from bitmodels.formats import open_checkpoint, write_gguf
from bitmodels.formats.gguf_types import TERNARY_FORMATS, TYPE_OF_DTYPE
from bitmodels.formats.gguf_writer import OutgoingGgufTensor


def rewrite_gguf(source: Path, target: Path, metadata: dict[str, Any], drop: tuple[str, ...] = ()) -> Path:
    """`source` with other metadata (... takes a key away), and without some tensors, as `target`."""
    checkpoint = open_checkpoint(source)
    tensors = []
    for name, entry in checkpoint.entries.items():
        if name in drop:
            continue
        tensor = checkpoint.read(name)
        if isinstance(tensor, Tensor):
            data, number = tensor, TYPE_OF_DTYPE[tensor.dtype]
        else:
            data, number = tensor.data, TERNARY_FORMATS[entry.encoding].ggml_type
        tensors.append(OutgoingGgufTensor(name, entry.shape, number, lambda data=data: data))
    content = {**checkpoint.config, **metadata}
    write_gguf(target, tensors, {key: value for key, value in content.items() if value is not ...})
    return target
