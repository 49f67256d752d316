"""Storage formats: how quantized weights lie in a checkpoint and in memory, the same bytes on every machine.

A row is one output feature, K input features long; rows follow each other without a gap. Every format packs neighbours
along K, and fills the last byte of a row with zero weights.

    2bit    4 weights a byte, u = t + 1 in {0, 1, 2}, first in the low bits:

            bits   7:6      5:4      3:2      1:0
            byte i u[4i+3]  u[4i+2]  u[4i+1]  u[4i]            3 is no code

    base3   5 weights a byte, 1.6 bits each. The five digits, first most significant, are a number v in 0..242; the byte
            holds the fraction v / 243 in units of 1/256, rounded up: byte = (256 v + 242) // 243. Multiplying the
            fraction by 3 moves the next digit in front of the point, so a digit costs a multiplication and a shift:

            3 * byte = (u[5i] << 8) + rest;  3 * rest = (u[5i+1] << 8) + ...

            13 of the 256 bytes stand for no v.

    int4    2 weights a byte, q + 8 in 0..15, first in the low bits:

            bits   7:4          3:0
            byte i q[2i+1] + 8  q[2i] + 8

    int8    1 weight a byte, q + 128.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from bitcore.checks import can_look_at
from bitcore.config import StorageFormat
from bitcore.exceptions import ArgumentError, DtypeError, QuantizationError, ShapeError

WEIGHTS_PER_BYTE = {"2bit": 4, "base3": 5, "int4": 2, "int8": 1}


def packed_columns(in_features: int, storage_format: str) -> int:
    """Bytes of one packed row of `in_features` weights in "2bit", "base3", "int4" or "int8"."""
    return -(-in_features // WEIGHTS_PER_BYTE[storage_format])


def pack_ternary(w_ternary: Tensor, storage_format: StorageFormat = "2bit") -> Tensor:
    """Packs ternary weights.

    Args:
        w_ternary: [N, K], any dtype, holding only -1, 0 and +1.
        storage_format: "2bit" or "base3".

    Returns:
        uint8 [N, ceil(K/4)] ("2bit") or [N, ceil(K/5)] ("base3").

    Raises:
        ShapeError, ArgumentError: `w_ternary` is not 2-d; `storage_format` is unknown.
        QuantizationError: a value is not -1, 0 or +1.
    """
    _check_format(storage_format)
    codes = _codes(w_ternary, "w_ternary", lowest=-1, highest=1)
    if storage_format == "2bit":
        first, second, third, fourth = _columns(codes, 4, fill=1)
        return first | second << 2 | third << 4 | fourth << 6
    value, *digits = _columns(codes, 5, fill=1)
    for digit in digits:
        value = value * 3 + digit  # at most 242
    return _BYTE_OF_VALUE.to(codes.device)[value.int()]


def unpack_ternary(packed: Tensor, in_features: int, storage_format: StorageFormat = "2bit") -> Tensor:
    """Unpacks ternary weights: the inverse of `pack_ternary`.

    Args:
        packed: uint8 [N, ceil(K/4)] ("2bit") or [N, ceil(K/5)] ("base3").
        in_features: K.
        storage_format: "2bit" or "base3".

    Returns:
        int8 [N, K] in {-1, 0, +1}.

    Raises:
        DtypeError, ShapeError, ArgumentError: `packed` is not such a tensor; `storage_format` is unknown.
        QuantizationError: a byte stands for no weights.
    """
    check_packed_ternary(packed, in_features, storage_format)
    return decode_ternary(packed, in_features, storage_format)


def decode_ternary(packed: Tensor, in_features: int, storage_format: StorageFormat) -> Tensor:
    """`unpack_ternary` of bytes that are known to be good: no look at their values, so no wait for a GPU."""
    if storage_format == "2bit":
        codes = torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1)
    else:
        digits = []
        rest = packed.to(torch.int16)
        for _ in range(5):
            rest = rest * 3
            digits.append((rest >> 8).to(torch.uint8))
            rest = rest & 255
        codes = torch.stack(digits, dim=-1)
    return codes.flatten(1)[:, :in_features].to(torch.int8) - 1


def check_packed_ternary(packed: Tensor, in_features: int, storage_format: StorageFormat) -> None:
    """Raises what `unpack_ternary` raises, without unpacking."""
    _check_format(storage_format)
    _check_packed(packed, in_features, storage_format)
    if not can_look_at(packed) or is_packed_ternary(packed, storage_format):
        return
    bad = ~_IS_2BIT_BYTE if storage_format == "2bit" else ~_IS_BASE3_BYTE
    row, column = (int(index) for index in bad.to(packed.device)[packed.int()].nonzero()[0])
    what = "a code of 3" if storage_format == "2bit" else "a byte that stands for no five weights"
    was = f"{int(packed[row, column])} at [{row}, {column}], {what}"
    raise QuantizationError("packed", was, f"ternary weights in {storage_format}")


def is_packed_ternary(packed: Tensor, storage_format: StorageFormat) -> bool:
    """Whether every byte of `packed` uint8 stands for ternary weights."""
    return all(_all_ternary(part, storage_format) for part in _parts(packed))


def pack_int4(w_int4: Tensor) -> Tensor:
    """Packs int4 weights.

    Args:
        w_int4: [N, K], any dtype, holding whole numbers in -8..7.

    Returns:
        uint8 [N, ceil(K/2)].

    Raises:
        ShapeError: `w_int4` is not 2-d.
        QuantizationError: a value is not a whole number in -8..7.
    """
    low, high = _columns(_codes(w_int4, "w_int4", lowest=-8, highest=7), 2, fill=8)
    return low | high << 4


def unpack_int4(packed: Tensor, in_features: int) -> Tensor:
    """Unpacks int4 weights: the inverse of `pack_int4`.

    Args:
        packed: uint8 [N, ceil(K/2)].
        in_features: K.

    Returns:
        int8 [N, K] in -8..7.

    Raises:
        DtypeError, ShapeError: `packed` is not such a tensor.
    """
    _check_packed(packed, in_features, "int4")
    codes = torch.stack([packed & 15, packed >> 4], dim=-1)
    return codes.flatten(1)[:, :in_features].to(torch.int8) - 8


def pack_int8(w_int8: Tensor) -> Tensor:
    """Packs int8 weights.

    Args:
        w_int8: [N, K], any dtype, holding whole numbers in -128..127.

    Returns:
        uint8 [N, K].

    Raises:
        ShapeError: `w_int8` is not 2-d.
        QuantizationError: a value is not a whole number in -128..127.
    """
    return _codes(w_int8, "w_int8", lowest=-128, highest=127)


def unpack_int8(packed: Tensor, in_features: int) -> Tensor:
    """Unpacks int8 weights: the inverse of `pack_int8`.

    Args:
        packed: uint8 [N, K].
        in_features: K.

    Returns:
        int8 [N, K].

    Raises:
        DtypeError, ShapeError: `packed` is not such a tensor.
    """
    _check_packed(packed, in_features, "int8")
    return (packed ^ 128).view(torch.int8)


def _codes(weights: Tensor, argument: str, lowest: int, highest: int) -> Tensor:
    if weights.dim() != 2:
        raise ShapeError(argument, f"of shape {list(weights.shape)}", "[out_features, in_features]")
    if weights.numel() > 0 and can_look_at(weights):
        whole = not weights.is_floating_point() or bool((weights == weights.round()).all())
        smallest, largest = weights.aminmax()
        if not whole or not bool(smallest >= lowest) or not bool(largest <= highest):
            was = f"from {smallest.item()} to {largest.item()}" + ("" if whole else ", not all whole")
            raise QuantizationError(argument, was, f"whole numbers from {lowest} to {highest}")
    return (weights.to(torch.int8) - lowest).to(torch.uint8)  # above 127 int8 wraps, and uint8 wraps back


def _columns(codes: Tensor, per_byte: int, fill: int) -> tuple[Tensor, ...]:
    padded = F.pad(codes, (0, -codes.shape[1] % per_byte), value=fill)
    return padded.reshape(padded.shape[0], padded.shape[1] // per_byte, per_byte).unbind(-1)


def _check_format(storage_format: str) -> None:
    if storage_format not in ("2bit", "base3"):
        raise ArgumentError("storage_format", repr(storage_format), "'2bit' or 'base3'")


def _parts(packed: Tensor) -> Iterator[Tensor]:
    """The bytes of `packed` in parts that stay in a core's cache; int64 where they can be read as that."""
    flat = packed.reshape(-1)
    size = _PART_BYTES if packed.is_cpu else max(flat.numel(), 8)  # a GPU is asked once
    aligned = flat.numel() // 8 * 8 if flat.data_ptr() % 8 == 0 and flat.storage_offset() % 8 == 0 else 0
    if aligned > 0:
        yield from torch.split(flat[:aligned].view(torch.int64), size // 8)
    yield from torch.split(flat[aligned:], size)


def _all_ternary(part: Tensor, storage_format: str) -> bool:
    if storage_format == "2bit":
        low_bits = 0x5555555555555555 if part.dtype == torch.int64 else 0x55
        return not bool((part & part >> 1 & low_bits).any())
    return bool(_IS_BASE3_BYTE.to(part.device)[part.view(torch.uint8).int()].all())


def _check_packed(packed: Tensor, in_features: int, storage_format: str) -> None:
    if packed.dtype != torch.uint8:
        raise DtypeError("packed", packed.dtype, "torch.uint8")
    columns = packed_columns(in_features, storage_format)
    if packed.dim() != 2 or packed.shape[1] != columns:
        expected = f"[out_features, {columns}] for in_features {in_features} in {storage_format}"
        raise ShapeError("packed", f"of shape {list(packed.shape)}", expected)


_PART_BYTES = 1 << 18
_BYTE_OF_VALUE = ((256 * torch.arange(243, device="cpu") + 242) // 243).to(torch.uint8)
_IS_BASE3_BYTE = torch.zeros(256, dtype=torch.bool, device="cpu").index_fill_(0, _BYTE_OF_VALUE.long(), True)
_IS_2BIT_BYTE = torch.tensor([byte & byte >> 1 & 0x55 == 0 for byte in range(256)], device="cpu")
