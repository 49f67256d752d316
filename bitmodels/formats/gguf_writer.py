"""Writing GGUF files tensor by tensor, with the `gguf` package."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, ShapeError
from bitcore.packed_weight import PackedWeight
from bitmodels.formats.gguf_types import TERNARY_FORMATS, TYPE_OF_DTYPE, gguf_package, type_nbytes
from bitmodels.formats.i2_s import I2_S
from bitmodels.progress import tracked
from bitmodels.replace_file import replace_file


@dataclass(frozen=True)
class OutgoingGgufTensor:
    """A tensor to write, whose bytes `make` gives when its turn comes."""

    name: str
    shape: tuple[int, ...]  # slowest dimension first
    ggml_type: int
    make: Callable[[], Tensor]  # uint8 [bytes], or the tensor itself for a type that is a dtype


def gguf_tensor(name: str, tensor: Tensor) -> OutgoingGgufTensor:
    """A tensor as it is: F32, F16, BF16, F64 or an integer type. Raises ArgumentError for any other dtype."""
    if tensor.dtype not in TYPE_OF_DTYPE:
        raise ArgumentError(name, tensor.dtype, f"one of {', '.join(map(str, TYPE_OF_DTYPE))}")
    return OutgoingGgufTensor(name, tuple(tensor.shape), TYPE_OF_DTYPE[tensor.dtype], lambda: tensor)


def gguf_weight(
    name: str, weight: PackedWeight, config: BitQuantConfig, format_name: str, *, scale_tensor: bool
) -> list[OutgoingGgufTensor]:
    """A ternary weight in "TQ1_0", "TQ2_0", "Q2_0" or "I2_S".

    Args:
        name: as the file is to have it: "blk.0.attn_q.weight".
        weight: packed as `config` says.
        config: of ternary weights.
        format_name: the format.
        scale_tensor: True writes a scale of 1 into the blocks and the exact one into a float32 tensor beside the
            weight, "blk.0.attn_q.scale", which llama.cpp's `bitnet` architecture reads. False writes it into the
            blocks, rounded to float16, or for I2_S as it is.

    Raises:
        ArgumentError: no such format, weights that are not ternary, or a scale tensor for I2_S.
        ShapeError: the format cannot hold the shape, and the message says which can; or more scales than fit.
        QuantizationError: float16 cannot hold a scale.
    """
    if format_name not in TERNARY_FORMATS:
        raise ArgumentError("format_name", repr(format_name), f"one of {', '.join(TERNARY_FORMATS)}")
    if config.weight_dtype != "ternary":
        raise ArgumentError("config.weight_dtype", config.weight_dtype, "ternary")
    encoding = TERNARY_FORMATS[format_name]
    if scale_tensor and encoding is I2_S:
        raise ArgumentError(
            "scale_tensor", True, "False: I2_S has the exact scale itself, and its readers know no other"
        )
    shape = (weight.packed.shape[0], weight.in_features)
    encoding.nbytes(*shape)  # refuses a shape now, not in the middle of a file
    scale = torch.ones(1) if scale_tensor else weight.scale.cpu()
    ternary = OutgoingGgufTensor(
        name, shape, encoding.ggml_type, lambda: encoding.encode(weight.values(config).cpu(), scale)
    )
    if not scale_tensor:
        return [ternary]
    if weight.scale.numel() != 1:
        raise ShapeError("weight_scale", f"of shape {list(weight.scale.shape)}", "[1] for a scale tensor")
    return [ternary, gguf_tensor(f"{name.removesuffix('.weight')}.scale", weight.scale.float().reshape(1))]


def write_gguf(path: Path, tensors: Iterable[OutgoingGgufTensor], metadata: Mapping[str, Any]) -> None:
    """Writes a GGUF file of version 3, whole or not at all; one tensor at a time is in memory.

    Args:
        path: of the file.
        tensors: in their order in the file.
        metadata: by key; "general.architecture" among it. bool, int (uint32, else int64), float (float32), str, or a
            list of these (integers int32).

    Raises:
        DependencyError: the `gguf` package is not installed.
        ArgumentError: two tensors have one name, or metadata has no architecture or a value that GGUF has no type for.
        ShapeError: a tensor is made other than announced. What was at `path` stays.
    """
    gguf = gguf_package("writing GGUF files")
    tensors = list(tensors)
    if not isinstance(metadata.get("general.architecture"), str):
        raise ArgumentError("metadata", "without general.architecture", "its name, such as 'llama' or 'bitnet'")
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ArgumentError("tensors", f"with two of name {', '.join(twice)}", "one of each name")
    with replace_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, metadata["general.architecture"])
        try:
            _write(writer, gguf, tensors, metadata)
        finally:
            writer.close()


def _write(writer: Any, gguf: ModuleType, tensors: list[OutgoingGgufTensor], metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, _value_type(gguf, key, value))
    byte_dtype = torch.empty(0, dtype=torch.int8).numpy().dtype  # uint8 would make gguf take the shape for one of bytes
    for tensor in tensors:
        nbytes = type_nbytes(tensor.ggml_type, tensor.shape)
        writer.add_tensor_info(tensor.name, tensor.shape, byte_dtype, nbytes, raw_dtype=tensor.ggml_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tracked(tensors, "writing"):
        raw = tensor.make().detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        nbytes = type_nbytes(tensor.ggml_type, tensor.shape)
        if raw.numel() != nbytes:
            raise ShapeError(tensor.name, f"of {raw.numel()} bytes", f"{nbytes}")
        writer.write_tensor_data(raw.numpy())


def _value_type(gguf: ModuleType, key: str, value: Any) -> Any:
    types = gguf.GGUFValueType
    if isinstance(value, list) and value and {type(item) for item in value} in ({bool}, {float}, {str}):
        return types.ARRAY
    if isinstance(value, list) and value and all(type(item) is int and -(1 << 31) <= item < 1 << 31 for item in value):
        return types.ARRAY
    if isinstance(value, bool):
        return types.BOOL
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return types.UINT32 if 0 <= value < 1 << 32 else types.INT64
    if isinstance(value, float):
        return types.FLOAT32
    if isinstance(value, str):
        return types.STRING
    raise ArgumentError(f"metadata[{key!r}]", repr(value), "a bool, int, float, str, or a list of one of these")
