"""EncodedWeight: a ternary matrix as a file holds it, on its way to a PackedWeight."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bitcore.checks import check_positive
from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, CheckpointError
from bitcore.packed_weight import PackedWeight
from bitcore.packing import pack_ternary, packed_columns
from bitcore.quantizers import QuantizedWeight
from bitmodels.formats.scales import config_for, simplest_scale, zero_groups


class TernaryFormat(Protocol):
    """How a file encodes a ternary matrix [N, K]. Data that is none raises an ArgumentError."""

    @property
    def name(self) -> str:
        """As the format's own documents write it."""

    def parts(self, data: Tensor, out_features: int, in_features: int) -> Iterator[tuple[slice, Tensor]]:
        """The int8 weights, some rows at a time: (rows, [len(rows), K]). Together they are all rows, once."""

    def scale(self, data: Tensor, out_features: int, in_features: int) -> Tensor:
        """float32 [N, groups], or [1, 1] for the whole matrix, as they are."""


@runtime_checkable
class RepackedFormat(Protocol):
    """A TernaryFormat whose bytes become those of 2bit by a shorter way than over the weights."""

    def to_2bit(self, data: Tensor, out_features: int, in_features: int) -> Tensor | None:
        """What `pack_ternary` gives for all parts; None where that way cannot be gone, or a part would be refused."""


@dataclass(frozen=True)
class EncodedWeight:
    """A ternary matrix [out_features, in_features] in a file's own bytes."""

    name: str
    format: TernaryFormat
    out_features: int
    in_features: int
    data: Tensor
    own_scale: Tensor | None = None  # float32 [1]: a tensor of its own, which multiplies what `data` says

    def decode(self) -> QuantizedWeight:
        """The int8 weights [N, K] and their scale, float32 [1], [N] or [N, groups], the simplest that says it.

        Raises:
            CheckpointError: the bytes are no ternary matrix, or a scale is NaN, infinite, negative or zero.
        """
        return QuantizedWeight(self._ternary(), self._scale(), None)

    def pack(self, config: BitQuantConfig) -> tuple[PackedWeight, BitQuantConfig]:
        """The weight in `config`'s storage format, and `config` with the granularity that the file's scales have.

        Raises:
            CheckpointError: as `decode`.
        """
        packed = None
        if config.storage_format == "2bit" and isinstance(self.format, RepackedFormat):
            packed = self.format.to_2bit(self.data, self.out_features, self.in_features)
        if packed is None:
            columns = packed_columns(self.in_features, config.storage_format)
            packed = torch.empty(self.out_features, columns, dtype=torch.uint8)
            for rows, part in self._parts():
                packed[rows] = pack_ternary(part, config.storage_format)
        scale = self._scale()
        return PackedWeight(packed, scale, None, self.in_features), config_for(scale, self.in_features, config)

    def _parts(self) -> Iterator[tuple[slice, Tensor]]:
        try:
            yield from self.format.parts(self.data, self.out_features, self.in_features)
        except ArgumentError as error:
            raise self._damage(error) from error

    def _ternary(self) -> Tensor:
        ternary = torch.empty(self.out_features, self.in_features, dtype=torch.int8)
        for rows, part in self._parts():
            ternary[rows] = part
        return ternary

    def _scale(self) -> Tensor:
        raw = self.format.scale(self.data, self.out_features, self.in_features)
        try:
            scale = simplest_scale(raw, lambda: zero_groups(self._ternary().reshape(raw.shape[0], -1), raw.shape[1]))
            if self.own_scale is not None:
                scale = scale * self.own_scale
                check_positive("scale", scale)
        except ArgumentError as error:
            raise self._damage(error) from error
        return scale

    def _damage(self, error: ArgumentError) -> CheckpointError:
        return CheckpointError(f"{self.name} ({self.format.name}): {error}")
