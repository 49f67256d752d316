"""The header of a GGUF file (llama.cpp's ggml/docs/gguf.md), read without trust in any length that it states.

    "GGUF", uint32 version 2 or 3, uint64 tensors, uint64 entries         little endian throughout
    entries:  string key, uint32 type, value                              a string is a uint64 length and its bytes
    tensors:  string name, uint32 dimensions, uint64 sizes (fastest first), uint32 type, uint64 offset
    padding to general.alignment (32 if absent), then the tensors' bytes, each padded likewise

The `gguf` package's own reader is not used: it refuses a file with an I2_S or Q2_0 tensor, trusts the counts, and takes
10 s for a vocabulary of 128,256 tokens.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from bitcore.exceptions import CheckpointError
from bitmodels.formats.gguf_types import type_name, type_nbytes

MAGIC = b"GGUF"
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
UINT32 = 4
MAX_DIMENSIONS = 4
Q2_0 = 42


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a GGUF file."""

    name: str
    shape: tuple[int, ...]  # slowest dimension first, as torch has it
    ggml_type: int
    offset: int  # from the beginning of the file
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says before its tensors."""

    version: int
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_header(path: Path) -> GgufHeader:
    """Reads the header of a GGUF file, and checks that the whole of every tensor is there.

    Raises:
        CheckpointError: the file is no GGUF file, is damaged or truncated, or is one part of several.
        DependencyError: a tensor has a type that the `gguf` package alone knows, and it is not installed.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
            return _Header(contents).read()
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise CheckpointError(f"{path} is not a GGUF file: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


class _Header:
    """A position in the file's bytes that never passes their end."""

    def __init__(self, contents: mmap.mmap) -> None:
        self.contents = contents
        self.position = 0

    def read(self) -> GgufHeader:
        if self._take(4) != MAGIC:
            raise CheckpointError("is not a GGUF file: it does not begin with GGUF")
        (version,) = self._unpack("I")
        if version not in (2, 3):
            what = "big-endian" if version & 0xFFFF == 0 else f"of GGUF version {version}"
            raise CheckpointError(f"is {what}, expected little-endian GGUF of version 2 or 3")
        tensor_count, entry_count = self._unpack("QQ")
        metadata: dict[str, Any] = {}
        alignment = 32
        for _ in range(entry_count):
            key = self._name()
            (kind,) = self._unpack("I")
            if key in metadata:
                raise CheckpointError(f"has the key {key} twice")
            metadata[key] = self._value(kind, key)
            if key == "general.alignment":
                alignment = _checked_alignment(kind, metadata[key])
        if metadata.get("split.count", 1) not in (0, 1):
            raise CheckpointError(
                f"is one of {metadata['split.count']} parts, expected a whole file: llama-gguf-split --merge joins them"
            )
        infos = [self._tensor_info() for _ in range(tensor_count)]
        begin = -(-self.position // alignment) * alignment
        return GgufHeader(version, metadata, self._placed(infos, begin, alignment))

    def _placed(
        self, infos: list[tuple[str, tuple[int, ...], int, int]], begin: int, alignment: int
    ) -> dict[str, GgufTensor]:
        tensors: dict[str, GgufTensor] = {}
        for name, shape, ggml_type, offset in infos:
            if name in tensors:
                raise CheckpointError(f"has the tensor {name} twice")
            if offset % alignment != 0:
                raise CheckpointError(f"{name} is at offset {offset}, expected a multiple of {alignment}")
            try:
                tensors[name] = GgufTensor(name, shape, ggml_type, begin + offset, type_nbytes(ggml_type, shape))
            except CheckpointError as error:
                raise CheckpointError(f"{name} of shape {list(shape)}: {error}") from error
        in_order = sorted(tensors.values(), key=lambda tensor: tensor.offset)
        ends = [*(tensor.offset for tensor in in_order[1:]), len(self.contents)]
        for tensor, end in zip(in_order, ends, strict=True):
            room = end - tensor.offset
            if room < tensor.nbytes:
                what = f"{tensor.name} ({type_name(tensor.ggml_type)} {list(tensor.shape)})"
                raise CheckpointError(
                    f"is truncated or damaged: {what} needs {tensor.nbytes} bytes, {max(room, 0)} are there"
                    + _fork_of_q2_0(tensor, room)
                )
        return tensors

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._name()
        (dimensions,) = self._unpack("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise CheckpointError(f"{name} has {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}")
        sizes = self._unpack(f"{dimensions}Q")
        if 0 in sizes or prod(sizes) >= 1 << 63:
            raise CheckpointError(f"{name} is of shape {list(sizes[::-1])}, expected sizes from 1 to 2**63 in all")
        ggml_type, offset = self._unpack("IQ")
        return name, tuple(sizes[::-1]), ggml_type, offset

    def _value(self, kind: int, key: str) -> Any:
        if kind in SCALARS:
            return self._unpack(SCALARS[kind])[0]
        if kind == STRING:
            return self._string("surrogateescape")
        if kind != ARRAY:
            raise CheckpointError(f"{key} is of type {kind}, expected one of GGUF's value types 0 to 12")
        item_kind, count = self._unpack("IQ")
        if item_kind == STRING:
            self._check_room(8 * count)
            return [self._string("surrogateescape") for _ in range(count)]
        if item_kind not in SCALARS:
            raise CheckpointError(f"{key} is an array of type {item_kind}, expected numbers or strings")
        self._check_room(struct.calcsize(SCALARS[item_kind]) * count)
        return list(self._unpack(f"{count}{SCALARS[item_kind]}"))

    def _name(self) -> str:
        name = self._string("strict")
        if name == "":
            raise CheckpointError(f"has an empty name at byte {self.position}")
        return name

    def _string(self, errors: str) -> str:
        (length,) = self._unpack("Q")
        raw = self._take(length)
        try:
            return raw.decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise CheckpointError(f"has a name that is not UTF-8 at byte {self.position}") from error

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{layout}", self._take(struct.calcsize(f"<{layout}")))

    def _take(self, count: int) -> bytes:
        self._check_room(count)
        self.position += count
        return self.contents[self.position - count : self.position]

    def _check_room(self, count: int) -> None:
        rest = len(self.contents) - self.position
        if count > rest:
            raise CheckpointError(
                f"is truncated or damaged: {count} bytes are needed at byte {self.position}, {rest} follow"
            )


def _fork_of_q2_0(tensor: GgufTensor, room: int) -> str:
    """A fork wrote blocks of 128 weights in 34 bytes under the number of mainline's 64 in 18: 17/18 of the bytes."""
    is_fork = tensor.ggml_type == Q2_0 and room >= tensor.nbytes // 18 * 17
    return ". They would do for Q2_0 blocks of 128 weights, as a fork has them; those are not read" if is_fork else ""


def _checked_alignment(kind: int, alignment: Any) -> int:
    if kind != UINT32 or alignment == 0 or alignment & (alignment - 1) != 0:
        raise CheckpointError(f"general.alignment is {alignment}, expected a power of two as uint32")
    return int(alignment)
