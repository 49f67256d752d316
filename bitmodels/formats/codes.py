"""Codes u = t + 1 of ternary weights t: what every foreign encoding but those in floating point holds."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bitcore.exceptions import QuantizationError, ShapeError

PART_WEIGHTS = 1 << 19  # what is made of them stays in a core's cache, and its memory is used again for the next


def row_parts(out_features: int, in_features: int, multiple: int = 1) -> Iterator[slice]:
    """Rows of a matrix in parts of about PART_WEIGHTS weights, each but the last a multiple of `multiple` rows."""
    step = max(PART_WEIGHTS // in_features // multiple, 1) * multiple
    for begin in range(0, out_features, step):
        yield slice(begin, min(begin + step, out_features))


def check_nbytes(data: Tensor, nbytes: int) -> None:
    """Raises ShapeError if `data` uint8 is not `nbytes` long."""
    if data.numel() != nbytes:
        raise ShapeError("data", f"of {data.numel()} bytes", f"{nbytes}")


def ternary_of_codes(codes: Tensor, first_row: int) -> Tensor:
    """int8 [rows, K] in {-1, 0, +1} of uint8 codes [rows, K].

    Raises:
        QuantizationError: a code is not 0, 1 or 2; its row is counted from `first_row`.
    """
    if int(codes.max()) > 2:
        row, column = (int(index) for index in (codes > 2).nonzero()[0])
        was = f"code {codes[row, column].item()} at [{first_row + row}, {column}]"
        raise QuantizationError("weight", was, "code 0, 1 or 2")
    return codes.view(torch.int8) - 1


def codes_of_ternary(ternary: Tensor) -> Tensor:
    """uint8 codes [N, K] of int8 values [N, K].

    Raises:
        QuantizationError: a value is not -1, 0 or +1.
    """
    if max(abs(int(bound)) for bound in ternary.aminmax()) > 1:
        row, column = (int(index) for index in (ternary.abs() > 1).nonzero()[0])
        raise QuantizationError("weight", f"{ternary[row, column].item()} at [{row}, {column}]", "-1, 0 or +1")
    return (ternary.to(torch.int8) + 1).view(torch.uint8)
