"""PackedWeight: what a kernel reads and a checkpoint holds of one layer."""

from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from bitcore.checks import check_finite, check_positive
from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, DeviceError, DtypeError, ShapeError
from bitcore.packing import (
    check_packed_ternary,
    decode_ternary,
    pack_int4,
    pack_int8,
    pack_ternary,
    packed_columns,
    unpack_int4,
    unpack_int8,
)
from bitcore.quantizers import QuantizedWeight, quantizer_for


class PackedWeight(NamedTuple):
    """A quantized weight in its storage format (bitcore.packing).

    packed uint8 [N, bytes], scale float32 [1], [N] or [N, groups], zero_point int8 as the scale or None.
    """

    packed: Tensor
    scale: Tensor
    zero_point: Tensor | None
    in_features: int

    @classmethod
    def from_float(cls, weight: Tensor, config: BitQuantConfig) -> Self:
        """Quantizes and packs `weight` [N, K].

        Raises:
            QuantizationError: a weight is NaN or infinite, or so large that its scale is.
        """
        if weight.is_meta and weight.dim() == 2 and weight.is_floating_point():
            return cls._of_shape(weight.shape[0], weight.shape[1], config)
        with torch.no_grad():
            check_finite("weight", weight)
            quantized = quantizer_for(config).quantize_weight(weight.detach())
            check_finite("weight_scale", quantized.scale)
            return cls.from_quantized(quantized, config)

    @classmethod
    def _of_shape(cls, out_features: int, in_features: int, config: BitQuantConfig) -> Self:
        """What `from_float` gives for a weight on the meta device, without the many steps of getting there."""
        shape = _scale_shape(out_features, in_features, config)
        columns = packed_columns(in_features, config.packed_format)
        return cls(
            torch.empty(out_features, columns, dtype=torch.uint8, device="meta"),
            torch.empty(shape, dtype=torch.float32, device="meta"),
            torch.empty(shape, dtype=torch.int8, device="meta") if config.weight_quantizer == "minmax" else None,
            in_features,
        )

    @classmethod
    def from_quantized(cls, weight: QuantizedWeight, config: BitQuantConfig) -> Self:
        """Packs int8 values [N, K] that are quantized already."""
        values, scale, zero_point = weight
        if config.weight_dtype == "ternary":
            packed = pack_ternary(values, config.storage_format)
        else:
            packed = pack_int4(values) if config.weight_dtype == "int4" else pack_int8(values)
        return cls(packed, scale.float(), zero_point, values.shape[1])

    def values(self, config: BitQuantConfig) -> Tensor:
        """The int8 values [N, K], zero point not subtracted."""
        if config.weight_dtype == "ternary":
            return decode_ternary(self.packed, self.in_features, config.storage_format)
        unpack = unpack_int4 if config.weight_dtype == "int4" else unpack_int8
        return unpack(self.packed, self.in_features)

    def check(self, config: BitQuantConfig) -> None:
        """Raises what `check_layout` does, and QuantizationError for bytes or scales that no quantizer makes."""
        self.check_layout(config)
        if config.weight_dtype == "ternary":
            check_packed_ternary(self.packed, self.in_features, config.storage_format)
        check_positive("weight_scale", self.scale)

    def check_layout(self, config: BitQuantConfig) -> None:
        """Raises ShapeError, DtypeError, DeviceError or ArgumentError where a tensor is not as `config` says."""
        if self.packed.dtype != torch.uint8:
            raise DtypeError("weight_packed", self.packed.dtype, "torch.uint8")
        columns = packed_columns(self.in_features, config.packed_format)
        if self.packed.dim() != 2 or self.packed.shape[1] != columns:
            expected = f"[out_features, {columns}]: {self.in_features} weights in {config.packed_format}"
            raise ShapeError("weight_packed", f"of shape {list(self.packed.shape)}", expected)
        self.check_scale_shape(config)
        for name, tensor in (("weight_scale", self.scale), ("weight_zero_point", self.zero_point)):
            if tensor is not None and tensor.device != self.packed.device:
                raise DeviceError(name, f"on {tensor.device}", f"on {self.packed.device}, where the weight is")

    def check_scale_shape(self, config: BitQuantConfig, argument: str = "weight_scale") -> None:
        """Raises ShapeError, DtypeError or ArgumentError where scale or zero point are not as `config` says."""
        shape = _scale_shape(self.packed.shape[0], self.in_features, config)
        if not self.scale.is_floating_point():
            raise DtypeError(argument, self.scale.dtype, "torch.float32")
        zero_point = argument.replace("scale", "zero_point")
        if self.zero_point is None and config.weight_quantizer == "minmax":
            raise ArgumentError(zero_point, None, "zero points, which minmax weights have")
        if self.zero_point is not None and config.weight_quantizer != "minmax":
            raise ArgumentError(zero_point, "a tensor", f"None, for {config.weight_quantizer} weights")
        if self.zero_point is not None and self.zero_point.dtype != torch.int8:
            raise DtypeError(zero_point, self.zero_point.dtype, "torch.int8")
        for name, tensor in ((argument, self.scale), (zero_point, self.zero_point)):
            if tensor is not None and list(tensor.shape) != shape:
                expected = f"{shape}, for {config.weight_granularity} weights"
                raise ShapeError(name, f"of shape {list(tensor.shape)}", expected)


def _scale_shape(out_features: int, in_features: int, config: BitQuantConfig) -> list[int]:
    """The shape of the scale that a weight [out_features, in_features] has; without weights, of one nobody uses."""
    shape = [1] if config.weight_granularity == "per_tensor" else [max(out_features, 1)]
    if config.weight_granularity == "per_group":
        shape.append(-(-max(in_features, 1) // config.group_size))
    return shape
