"""Fake (meta) versions of the compiled operators: shapes without data, for torch.compile and torch.export."""

import torch
from torch import Tensor

from bitcore import extensions


def packed_linear(
    x: Tensor,
    weight_packed: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor | None,
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


def packed_linear_group(
    x: Tensor,
    weight_packed: list[Tensor],
    weight_scale: list[Tensor],
    weight_zero_point: list[Tensor],
    bias: list[Tensor],
    in_features: int,
    mode: int,
) -> list[Tensor]:
    """`packed_linear` with each weight."""
    return [
        packed_linear(x, packed, scale, None, None, in_features, mode)
        for packed, scale in zip(weight_packed, weight_scale, strict=True)
    ]


def attend_one(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Maps q [batch, heads, 1, head_dim], keys and values [batch, kv_heads, length, head_dim] to q's shape."""
    return q.new_empty(q.shape)


def attend_next(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, past: int
) -> Tensor:
    """Maps q [batch, 1, heads * head_dim] to [batch, heads, 1, head_dim]; writes into keys and values."""
    return q.new_empty(q.shape[0], q.shape[2] // keys.shape[3], 1, keys.shape[3])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Maps x [..., n], weight [n] to x's shape."""
    return x.new_empty(x.shape)


if extensions.why_missing() is None:
    torch.library.register_fake("bitlab::rms_norm", rms_norm)
    torch.library.register_fake("bitlab::attend_one", attend_one)
    torch.library.register_fake("bitlab::attend_next", attend_next)
    torch.library.register_fake("bitlab::packed_linear", packed_linear)
    torch.library.register_fake("bitlab::packed_linear_group", packed_linear_group)
