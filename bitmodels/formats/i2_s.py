"""GGUF I2_S: 128 weights in 32 bytes and one fp32 scale a tensor (type 36 of microsoft/BitNet's llama.cpp alone).

    offset 0       uint8 qs[n / 4]    n = N * K weights, row after row
    offset n / 4   fp32  scale        then 28 bytes that hold nothing (some writers repeat the scale there)

A byte holds the codes u = t + 1 of four weights that are 32 apart, the first in the high bits; 3 is no code. Blocks are
cut from the flat array, so one may begin in a row and end in the next:

    bits               7:6            5:4             3:2             1:0
    qs[32 b + m]       u[128b + m]    u[128b+32+m]    u[128b+64+m]    u[128b+96+m]      m = 0..31
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from bitcore.checks import check_positive
from bitcore.exceptions import ShapeError
from bitmodels.formats.codes import check_nbytes, codes_of_ternary, row_parts, ternary_of_codes
from bitmodels.formats.fitting import BLOCK_SIZES, check_fits

BLOCK = BLOCK_SIZES["I2_S"]
SCALE_BYTES = 32
SHIFTS = (6, 4, 2, 0)


@dataclass(frozen=True)
class I2SFormat:
    """The I2_S format."""

    name: str = "I2_S"
    ggml_type: int = 36
    file_type: int = 40

    def nbytes(self, out_features: int, in_features: int) -> int:
        """Bytes of a matrix. Raises ShapeError if it is not a whole number of blocks."""
        count = out_features * in_features
        if count % BLOCK != 0:
            raise ShapeError("weight", f"of {count} weights", f"a multiple of {BLOCK} for I2_S")
        return count // 4 + SCALE_BYTES

    def parts(self, data: Tensor, out_features: int, in_features: int) -> Iterator[tuple[slice, Tensor]]:
        """As TernaryFormat.parts, of `nbytes` bytes.

        Raises:
            ShapeError: N * K is not a multiple of 128, or `data` is of another size.
            QuantizationError: a code stands for no weight.
        """
        check_nbytes(data, self.nbytes(out_features, in_features))
        for part in row_parts(out_features, in_features, multiple=BLOCK // gcd(BLOCK, in_features)):
            blocks = data[part.start * in_features // 4 : part.stop * in_features // 4].reshape(-1, BLOCK // 4)
            codes = torch.stack([blocks >> shift & 3 for shift in SHIFTS], dim=1)
            yield part, ternary_of_codes(codes.reshape(-1, in_features), part.start)

    def scale(self, data: Tensor, out_features: int, in_features: int) -> Tensor:
        """As TernaryFormat.scale: float32 [1, 1]."""
        begin = out_features * in_features // 4
        return data[begin : begin + 4].clone().view(torch.float32).reshape(1, 1)

    def encode(self, ternary: Tensor, scale: Tensor) -> Tensor:
        """The bytes of int8 weights [N, K] with `scale` float32 [1].

        Raises:
            ShapeError: K is not a multiple of 128, as the format's kernels need, or there is more than one scale.
            QuantizationError: a value is not ternary, or the scale is no positive finite number.
        """
        check_fits(self.name, *ternary.shape)
        check_positive("weight_scale", scale)
        if scale.numel() != 1:
            raise ShapeError("weight_scale", f"of shape {list(scale.shape)}", "[1] for I2_S")
        first, second, third, fourth = codes_of_ternary(ternary).reshape(-1, 4, 32).unbind(1)
        codes = first << 6 | second << 4 | third << 2 | fourth
        padding = torch.zeros(SCALE_BYTES - 4, dtype=torch.uint8)
        return torch.cat([codes.flatten(), scale.float().reshape(1).view(torch.uint8), padding])


I2_S = I2SFormat()
