"""Hugging Face `bitnet`: uint8 [N / 4, K] and a scale of its own (transformers, integrations/bitnet.py).

A byte holds the codes u = t + 1 of four weights of one column, n = ceil(N / 4) rows apart, the first in the low bits; 3
is no code. Rows past N, where N is not a multiple of 4, hold nothing; transformers cannot load such a layer.

    bits          7:6             5:4             3:2             1:0
    byte[r, c]    u[3n + r, c]    u[2n + r, c]    u[n + r, c]     u[r, c]

`weight_scale` [1] is what one ternary unit is worth, or its reciprocal: the config's `linear_class` decides.

    bitlinear       y = (x @ t.T) / weight_scale + bias      1 / mean(abs(w)) is stored
    autobitlinear   y = (x @ t.T + bias) * weight_scale      mean(abs(w)) is stored; the bias is multiplied too
    autobitlinear, online: floating-point master weights, quantized (absmean) in the forward pass; no scale is stored
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from bitcore.checks import check_positive
from bitcore.exceptions import CheckpointError, QuantizationError, ShapeError
from bitcore.packing import is_packed_ternary
from bitmodels.formats.codes import codes_of_ternary, row_parts, ternary_of_codes
from bitmodels.formats.fitting import check_fits

# Of mean(abs(w)), median over the layers. The masters of BitNet b1.58 2B-4T, the largest known, are 1 to 6.
LARGEST_MEDIAN_SCALE = 8.0


class BitNetQuantization(BaseModel):
    """`quantization_config` of a config.json with quant_method "bitnet", with transformers' defaults."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    quant_method: Literal["bitnet"] = "bitnet"
    linear_class: Literal["bitlinear", "autobitlinear"] = "bitlinear"
    quantization_mode: Literal["offline", "online"] = "offline"
    modules_to_not_convert: list[str] | None = None  # None: lm_head and what is tied to it; a list is taken as it is
    use_rms_norm: bool = False
    rms_norm_eps: float = 1e-6

    @property
    def is_online(self) -> bool:
        """Whether the checkpoint holds master weights. bitlinear knows no online mode."""
        return self.linear_class == "autobitlinear" and self.quantization_mode == "online"

    @property
    def multiplies_bias(self) -> bool:
        """Whether the forward pass multiplies the bias by the scale."""
        return self.linear_class == "autobitlinear" and not self.is_online

    def scale_of_stored(self, stored: Tensor) -> Tensor:
        """The float32 scale [1] (w = t * scale) of a stored `weight_scale`.

        Raises:
            ShapeError: `stored` has not one element.
            QuantizationError: it is not positive and finite, or its reciprocal is not.
        """
        if stored.numel() != 1:
            raise ShapeError("weight_scale", f"of shape {list(stored.shape)}", "[1]")
        stored = stored.reshape(1).double()
        check_positive("weight_scale", stored)
        scale = (stored if self.linear_class == "autobitlinear" else stored.reciprocal()).float()
        check_positive("weight_scale", scale)
        return scale

    def stored_of_scale(self, scale: Tensor) -> Tensor:
        """What to store for a float32 scale [1], so that `scale_of_stored` gives it back bit for bit.

        float32, or float64 where no float32 number near its reciprocal has it as its own reciprocal.

        Raises:
            ShapeError, QuantizationError: as `scale_of_stored`.
        """
        if scale.numel() != 1:
            raise ShapeError("weight_scale", f"of shape {list(scale.shape)}", "[1]: bitnet has one scale a weight")
        check_positive("weight_scale", scale)
        if self.linear_class == "autobitlinear":
            return scale.float().reshape(1)
        stored = scale.double().reciprocal().reshape(1)
        return stored.float() if torch.equal(self.scale_of_stored(stored.float()), scale.reshape(1)) else stored


def check_orientation(scales: Mapping[str, Tensor], quantization: BitNetQuantization) -> None:
    """Refuses a linear_class that turns the scales of a model upside down, as far as they can tell.

    Args:
        scales: of every packed weight by its name, float32 [1], read as `quantization` says.
        quantization: the config.

    Raises:
        CheckpointError: a typical weight, by their median, is larger than any network's. Small ones are not refused:
            networks have them either way.
    """
    if not scales:
        return
    median = torch.cat(list(scales.values())).median().item()
    if median > LARGEST_MEDIAN_SCALE:
        other = "autobitlinear" if quantization.linear_class == "bitlinear" else "bitlinear"
        raise CheckpointError(
            f"linear_class {quantization.linear_class} makes a typical weight ±{median:.4g}, {other} would make it "
            f"±{1 / median:.4g}: quantization_config contradicts the weight scales. bitlinear divides by weight_scale, "
            f'autobitlinear multiplies; if the file was written by the other one, set "linear_class": "{other}"'
        )


@dataclass(frozen=True)
class BitNetFormat:
    """The packed weight of both classes; its scale is a tensor of its own."""

    name: str = "bitnet"

    def parts(self, data: Tensor, out_features: int, in_features: int) -> Iterator[tuple[slice, Tensor]]:
        """As TernaryFormat.parts, of uint8 [ceil(N / 4), K].

        Raises:
            ShapeError: `data` is not of that shape.
            QuantizationError: a code is 3.
        """
        rows = -(-out_features // 4)
        if tuple(data.shape) != (rows, in_features):
            expected = f"[{rows}, {in_features}] for {out_features} out_features"
            raise ShapeError("weight", f"of shape {list(data.shape)}", expected)
        for part in row_parts(rows, in_features):
            for quarter in range(4):
                begin = quarter * rows + part.start
                end = min(quarter * rows + part.stop, out_features)
                if begin < end:
                    codes = data[part.start : part.start + end - begin] >> 2 * quarter & 3
                    yield slice(begin, end), ternary_of_codes(codes, begin)

    def to_2bit(self, data: Tensor, out_features: int, in_features: int) -> Tensor | None:
        """As RepackedFormat.to_2bit: four bytes at a time, whose codes of one quarter make one byte.

        Byte j of a word has a quarter's code in two bits; multiplied with 2**24 + 2**18 + 2**12 + 2**6 it comes to lie
        2j bits above the 24th, where no other product is.
        """
        rows = out_features // 4
        if out_features % 4 != 0 or in_features % 4 != 0 or tuple(data.shape) != (rows, in_features):
            return None
        packed = torch.empty(4, rows, in_features // 4, dtype=torch.uint8)
        for part in row_parts(rows, in_features):
            some = data[part].clone()  # in a file it may lie at any byte
            if not is_packed_ternary(some, "2bit"):  # here, too, a byte holds four codes, and 3 is none
                return None
            for quarter in range(4):
                codes = (some.view(torch.int32) >> 2 * quarter).bitwise_and_(0x03030303)
                packed[quarter, part] = codes.mul_(0x01041040).bitwise_right_shift_(24).to(torch.uint8)
        return packed.reshape(out_features, in_features // 4)

    def scale(self, data: Tensor, out_features: int, in_features: int) -> Tensor:
        """As TernaryFormat.scale: 1."""
        return torch.ones(1, 1)

    def encode(self, ternary: Tensor) -> Tensor:
        """uint8 [N / 4, K] of int8 weights [N, K].

        Raises:
            ShapeError: N is not a multiple of 4: transformers could not load it.
            QuantizationError: a value is not ternary.
        """
        check_fits(self.name, *ternary.shape)
        first, second, third, fourth = codes_of_ternary(ternary).chunk(4)
        return first | second << 2 | third << 4 | fourth << 6


@dataclass(frozen=True)
class UnpackedBitNetFormat:
    """-1, 0 and +1 in floating point: the state of an autobitlinear model, which transformers unpacks at loading."""

    name: str = "bitnet unpacked"

    def parts(self, data: Tensor, out_features: int, in_features: int) -> Iterator[tuple[slice, Tensor]]:
        """As TernaryFormat.parts, of floating-point values [N, K].

        Raises:
            QuantizationError: a value is not -1, 0 or +1, as in master weights, which are to be read as online.
        """
        for part in row_parts(out_features, in_features):
            values = data[part]
            bad = (values != 0) & (values.abs() != 1)
            if bool(bad.any()):
                row, column = (int(index) for index in bad.nonzero()[0])
                raise QuantizationError(
                    "weight",
                    f"{values[row, column].item():.6g} at [{part.start + row}, {column}]",
                    "-1, 0 or +1 beside a weight_scale; a checkpoint of master weights has quantization_mode online",
                )
            yield part, values.to(torch.int8)

    def scale(self, data: Tensor, out_features: int, in_features: int) -> Tensor:
        """As TernaryFormat.scale: 1."""
        return torch.ones(1, 1)


BITNET = BitNetFormat()
BITNET_UNPACKED = UnpackedBitNetFormat()
