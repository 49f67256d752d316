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
    # Not an `if`: a size that is known only at run time cannot be branched on, but torch._check defers it.
    torch._check(  # type: ignore[no-untyped-call]
        x.device == weight_packed.device, lambda: f"x is on {x.device}, the weight on {weight_packed.device}"
    )
    torch._check(  # type: ignore[no-untyped-call]
        x.dim() >= 1 and x.shape[-1] == in_features, lambda: f"x must have in_features = {in_features} as its last size"
    )
    return x.new_empty(*x.shape[:-1], weight_packed.shape[0])


if extensions.why_missing() is None:
    torch.library.register_fake("bitlab::ternary_linear", ternary_linear)
