"""Fake (meta) versions of the compiled operators: shapes without data, for torch.compile and torch.export."""

import torch
from torch import Tensor

from bitcore import extensions


def ternary_linear(
    x: Tensor,
    weight_packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    in_features: int,
    mode: int,
) -> Tensor:
    """Maps x [..., in_features], weight_packed [N, bytes] -> [..., N] in x's dtype."""
    if x.device != weight_packed.device or x.dim() == 0 or x.shape[-1] != in_features:
        raise RuntimeError("x must be on weight_packed's device and have in_features as its last size")
    return x.new_empty(*x.shape[:-1], weight_packed.shape[0])


if extensions.why_missing() is None:
    torch.library.register_fake("bitlab::ternary_linear", ternary_linear)
