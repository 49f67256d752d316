"""The tensor types of a GGUF file: ternary formats, plain dtypes, and the rest, which the `gguf` package decodes."""

from importlib import import_module
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bitcore.exceptions import CheckpointError, DependencyError, ShapeError
from bitmodels.formats.block_format import BlockFormat
from bitmodels.formats.i2_s import I2_S, I2SFormat
from bitmodels.formats.q2_0 import Q2_0
from bitmodels.formats.tq1_0 import TQ1_0
from bitmodels.formats.tq2_0 import TQ2_0

TERNARY_FORMATS: dict[str, BlockFormat | I2SFormat] = {
    "TQ1_0": TQ1_0,
    "TQ2_0": TQ2_0,
    "Q2_0": Q2_0,
    "I2_S": I2_S,
}
TERNARY_TYPES = {encoding.ggml_type: encoding for encoding in TERNARY_FORMATS.values()}
PLAIN_TYPES = {
    0: ("F32", torch.float32),
    1: ("F16", torch.float16),
    24: ("I8", torch.int8),
    25: ("I16", torch.int16),
    26: ("I32", torch.int32),
    27: ("I64", torch.int64),
    28: ("F64", torch.float64),
    30: ("BF16", torch.bfloat16),
}
TYPE_OF_DTYPE = {dtype: number for number, (_, dtype) in PLAIN_TYPES.items()}


def gguf_package(why: str) -> ModuleType:
    """The `gguf` package. Raises DependencyError, which says what it is needed for and how to install it."""
    try:
        return import_module("gguf")
    except ImportError as error:
        raise DependencyError(f"{why} needs the gguf package: pip install gguf") from error


def type_name(ggml_type: int) -> str:
    """As GGUF's documents write it. Raises CheckpointError for a type that neither BitLab nor `gguf` knows."""
    if ggml_type in TERNARY_TYPES:
        return TERNARY_TYPES[ggml_type].name
    if ggml_type in PLAIN_TYPES:
        return PLAIN_TYPES[ggml_type][0]
    return str(_other_type(ggml_type).name)


def type_nbytes(ggml_type: int, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of `shape`, slowest dimension first. Raises CheckpointError where `shape` does not fit."""
    if ggml_type in TERNARY_TYPES:
        encoding = TERNARY_TYPES[ggml_type]
        try:
            return encoding.nbytes(prod(shape[:-1]), shape[-1])
        except ShapeError as error:
            raise CheckpointError(str(error)) from error
    if ggml_type in PLAIN_TYPES:
        return prod(shape) * PLAIN_TYPES[ggml_type][1].itemsize
    other = _other_type(ggml_type)
    block_size, block_bytes = gguf_package(f"a tensor of type {other.name}").GGML_QUANT_SIZES[other]
    if shape[-1] % block_size != 0:
        raise CheckpointError(f"a row has {shape[-1]} values, expected a multiple of {block_size}")
    return int(prod(shape) // block_size * block_bytes)


def plain_tensor(ggml_type: int, data: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor of bytes `data` uint8: in its own dtype, or dequantized to float32 by the `gguf` package."""
    if ggml_type in PLAIN_TYPES:
        return data.view(PLAIN_TYPES[ggml_type][1]).reshape(shape)
    package = gguf_package(f"a tensor of type {type_name(ggml_type)}")
    try:
        values = package.quants.dequantize(data.reshape(prod(shape[:-1]), -1).numpy(), _other_type(ggml_type))
    except NotImplementedError as error:
        raise CheckpointError(f"the gguf package cannot decode the type {type_name(ggml_type)}") from error
    return torch.from_numpy(values).reshape(shape)


def _other_type(ggml_type: int) -> Any:
    package = gguf_package(f"a tensor of GGUF type {ggml_type}")
    try:
        return package.GGMLQuantizationType(ggml_type)
    except ValueError as error:
        raise CheckpointError(f"no tensor type has the number {ggml_type}") from error
