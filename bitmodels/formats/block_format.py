"""GGUF's ternary block formats: a row is a whole number of blocks of codes with one fp16 scale (w = t * scale) each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bitcore.checks import check_positive
from bitcore.exceptions import QuantizationError
from bitmodels.formats.codes import check_nbytes, codes_of_ternary, row_parts, ternary_of_codes
from bitmodels.formats.fitting import BLOCK_SIZES, check_fits
from bitmodels.formats.scales import scale_of_blocks

SMALLEST_NORMAL = torch.finfo(torch.float16).smallest_normal  # below it float16 loses digits


@dataclass(frozen=True)
class BlockFormat:
    """One such format. Its file draws the bytes and gives the two functions between code bytes and codes."""

    name: str
    ggml_type: int
    file_type: int | None  # general.file_type of a file of such tensors, where it is known
    code_bytes: int  # of a block, beside the 2 of its scale
    scale_first: bool
    codes_of_bytes: Callable[[Tensor], Tensor]  # uint8 [blocks, code_bytes] -> uint8 [blocks, block size]
    bytes_of_codes: Callable[[Tensor], Tensor]

    @property
    def block_size(self) -> int:
        """Weights of a block."""
        return BLOCK_SIZES[self.name]

    def nbytes(self, out_features: int, in_features: int) -> int:
        """Bytes of a matrix. Raises ShapeError if `in_features` is not a multiple of the block size."""
        check_fits(self.name, out_features, in_features)
        return out_features * (in_features // self.block_size) * (self.code_bytes + 2)

    def parts(self, data: Tensor, out_features: int, in_features: int) -> Iterator[tuple[slice, Tensor]]:
        """As TernaryFormat.parts, of `nbytes` bytes.

        Raises:
            ShapeError: `in_features` is not a multiple of the block size, or `data` is of another size.
            QuantizationError: a code stands for no weight.
        """
        check_nbytes(data, self.nbytes(out_features, in_features))
        rows = data.reshape(out_features, -1)
        for part in row_parts(out_features, in_features):
            codes = self.codes_of_bytes(rows[part].reshape(-1, self.code_bytes + 2)[:, self._codes_at])
            yield part, ternary_of_codes(codes.reshape(-1, in_features), part.start)

    def scale(self, data: Tensor, out_features: int, in_features: int) -> Tensor:
        """As TernaryFormat.scale: float32 [N, K / block size]."""
        blocks = data.reshape(-1, self.code_bytes + 2)
        return blocks[:, self._scale_at].contiguous().view(torch.float16).float().reshape(out_features, -1)

    @property
    def _codes_at(self) -> slice:
        return slice(2, None) if self.scale_first else slice(0, self.code_bytes)

    @property
    def _scale_at(self) -> slice:
        return slice(0, 2) if self.scale_first else slice(self.code_bytes, None)

    def encode(self, ternary: Tensor, scale: Tensor) -> Tensor:
        """The bytes of int8 weights [N, K] with `scale` float32 [1], [N] or [N, groups], rounded to fp16.

        Raises:
            ShapeError: K is not a multiple of the block size, or a block would need more than one scale.
            QuantizationError: a value is not ternary, or fp16 cannot hold a scale to 1 part in 2048.
        """
        out_features, in_features = ternary.shape
        check_fits(self.name, out_features, in_features)
        check_positive("weight_scale", scale)
        smallest, largest = scale.aminmax()
        if float(smallest) < SMALLEST_NORMAL or bool(largest.half().isinf()):
            if not bool(ternary.any()):  # as of layers that training has left at the smallest scale there is
                return self.encode(ternary, torch.ones(1))
            raise QuantizationError(
                "weight_scale",
                f"from {smallest.item():.3g} to {largest.item():.3g}",
                f"from {SMALLEST_NORMAL:.3g} to 65504 for the float16 scales of {self.name}; "
                "a scale tensor of its own can hold it",
            )
        codes = codes_of_ternary(ternary).reshape(-1, self.block_size)
        scale_bytes = scale_of_blocks(scale, out_features, in_features, self.block_size).half().contiguous()
        parts = [self.bytes_of_codes(codes), scale_bytes.reshape(-1, 1).view(torch.uint8)]
        return torch.cat(parts[::-1] if self.scale_first else parts, dim=1).flatten()
