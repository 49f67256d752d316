"""Prompts of different lengths in one batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Self

from bitcore.exceptions import ArgumentError, DtypeError, ShapeError


@dataclass(frozen=True)
class Prompts:
    """Prompts of a batch, padded on the left: the last position of each is its last token."""

    input_ids: Tensor  # int64 [batch, length], on the CPU
    attention_mask: Tensor | None  # bool [batch, length], False at padding; None without padding

    @classmethod
    def of(
        cls,
        input_ids: Tensor | Sequence[Sequence[int]],
        attention_mask: Tensor | None,
        pad_token_id: int,
        vocab_size: int,
    ) -> Self:
        """Prompts of lists of tokens, or of a tensor [batch, length] with a mask of its padding, on any side.

        Raises:
            ShapeError, DtypeError, ArgumentError: there is no prompt, one is empty, a token is not in the vocabulary,
                or the mask does not fit.
        """
        rows = _rows(input_ids, attention_mask)
        for index, row in enumerate(rows):
            if len(row) == 0:
                raise ShapeError("input_ids", f"without a token in row {index}", "one or more tokens a prompt")
            lowest, highest = int(row.min()), int(row.max())
            if lowest < 0 or highest >= vocab_size:
                expected = f"tokens of 0 to {vocab_size - 1}, the vocabulary"
                raise ArgumentError("input_ids", f"from {lowest} to {highest} in row {index}", expected)
        length = max(len(row) for row in rows)
        padded = torch.full((len(rows), length), pad_token_id, dtype=torch.long)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for index, row in enumerate(rows):
            padded[index, length - len(row) :] = row
            mask[index, length - len(row) :] = True
        return cls(padded, None if bool(mask.all()) else mask)


def _rows(input_ids: Tensor | Sequence[Sequence[int]], attention_mask: Tensor | None) -> list[Tensor]:
    """The tokens of each prompt, int64 on the CPU, without padding."""
    if not isinstance(input_ids, Tensor):
        if attention_mask is not None:
            raise ArgumentError("attention_mask", "given beside lists of tokens", "None: lists need no padding")
        try:
            rows = [torch.as_tensor(row, device="cpu") for row in input_ids]
        except (RuntimeError, TypeError, ValueError) as error:
            raise DtypeError(
                "input_ids", repr(input_ids), "lists of tokens, which a tokenizer makes of text"
            ) from error
    else:
        if input_ids.dim() != 2:
            raise ShapeError("input_ids", f"of shape {list(input_ids.shape)}", "[batch, length]")
        rows = list(input_ids.cpu())
    if len(rows) == 0:
        raise ShapeError("input_ids", "without a prompt", "one or more")
    for row in rows:
        if row.dim() != 1:
            raise ShapeError("input_ids", f"with a row of shape {list(row.shape)}", "lists of tokens")
        if row.numel() > 0 and (row.is_floating_point() or row.dtype == torch.bool):
            raise DtypeError("input_ids", row.dtype, "an integer dtype")
    rows = [row.long() for row in rows]
    if attention_mask is None:
        return rows
    assert isinstance(input_ids, Tensor)
    return [row[kept] for row, kept in zip(rows, _kept(attention_mask, input_ids.shape), strict=True)]


def _kept(attention_mask: Tensor, shape: torch.Size) -> Tensor:
    """Which positions are no padding: bool [batch, length] on the CPU."""
    if not isinstance(attention_mask, Tensor):
        raise ArgumentError("attention_mask", f"a {type(attention_mask).__name__}", "a tensor, as input_ids")
    if attention_mask.shape != shape:
        expected = f"{list(shape)}, as input_ids"
        raise ShapeError("attention_mask", f"of shape {list(attention_mask.shape)}", expected)
    mask = attention_mask.cpu()
    if not bool(((mask == 0) | (mask == 1)).all()):
        lowest, highest = float(mask.min()), float(mask.max())
        raise ArgumentError("attention_mask", f"from {lowest:g} to {highest:g}", "bool, or 0 for padding and 1")
    return mask.bool()
