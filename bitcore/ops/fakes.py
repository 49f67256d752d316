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
    of_weight = [weight_packed, weight_scale, weight_zero_point, bias]
    devices = [tensor.device for tensor in of_weight if tensor is not None]
    # Not an `if`: a size that is known only at run time cannot be branched on, but torch._check defers it.
    torch._check(  # type: ignore[no-untyped-call]
        all(device == x.device for device in devices), lambda: f"x is on {x.device}, the weight on {devices}"
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
    """`packed_linear` with each weight; zero points and biases are of none or of all."""
    nothing = [None] * len(weight_packed)
    return [
        packed_linear(x, *of_weight, in_features, mode)
        for of_weight in zip(weight_packed, weight_scale, weight_zero_point or nothing, bias or nothing, strict=True)
    ]


def quantize_ternary(
    weight: Tensor, per_channel: bool, absmean: bool, threshold_factor: float, storage_format: int, kernel: int
) -> tuple[Tensor, Tensor]:
    """Maps weight [N, K] -> uint8 [N, bytes], float32 [N] or [1]."""
    rows, columns = weight.shape
    packed = weight.new_empty(rows, -(-columns // (4, 5)[storage_format]), dtype=torch.uint8)
    return packed, weight.new_empty(rows if per_channel else 1, dtype=torch.float32)


def dequantize_ternary(
    weight_packed: Tensor, weight_scale: Tensor, in_features: int, storage_format: int, dtype: torch.dtype
) -> Tensor:
    """Maps weight_packed [N, bytes] -> [N, in_features]."""
    return weight_packed.new_empty(weight_packed.shape[0], in_features, dtype=dtype)


def quantize_tokens(x: Tensor, per_tensor: bool, kernel: int) -> tuple[Tensor, Tensor]:
    """Maps x [tokens, K] -> int8 [tokens, K], float32 [1] or [tokens, 1]."""
    scale = x.new_empty(1 if per_tensor else (x.shape[0], 1), dtype=torch.float32)
    return x.new_empty(x.shape, dtype=torch.int8), scale


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


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Maps x and delta [..., n], weight [n] to two of x's shape."""
    return x.new_empty(x.shape), x.new_empty(x.shape)


def gated_activation(gate: Tensor, up: Tensor, weight: Tensor | None, eps: float, activation: int) -> Tensor:
    """Maps gate and up [..., n] to their shape."""
    return gate.new_empty(gate.shape)


def normed_linear_group(
    x: Tensor,
    other: Tensor | None,
    norm_weight: Tensor | None,
    eps: float,
    source: int,
    weight_packed: list[Tensor],
    weight_scale: list[Tensor],
    weight_zero_point: list[Tensor],
    bias: list[Tensor],
    in_features: int,
    mode: int,
) -> list[Tensor]:
    """`packed_linear_group`; for source 1, x + other, with a tensor of x's shape behind its outputs."""
    outputs = packed_linear_group(x, weight_packed, weight_scale, weight_zero_point, bias, in_features, mode)
    return [*outputs, x.new_empty(x.shape)] if source == 1 else outputs


def attend_at(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    arrivals: Tensor,
) -> Tensor:
    """Maps q [batch, 1, heads * head_dim] to its shape; writes into keys and values."""
    return q.new_empty(q.shape)


if extensions.why_missing() is None:
    torch.library.register_fake("bitlab::rms_norm", rms_norm)
    torch.library.register_fake("bitlab::attend_one", attend_one)
    torch.library.register_fake("bitlab::attend_next", attend_next)
    torch.library.register_fake("bitlab::packed_linear", packed_linear)
    torch.library.register_fake("bitlab::packed_linear_group", packed_linear_group)
    torch.library.register_fake("bitlab::quantize_ternary", quantize_ternary)
    torch.library.register_fake("bitlab::dequantize_ternary", dequantize_ternary)
    torch.library.register_fake("bitlab::quantize_tokens", quantize_tokens)
if extensions.why_cuda_missing() is None:
    torch.library.register_fake("bitlab::add_rms_norm", add_rms_norm)
    torch.library.register_fake("bitlab::gated_activation", gated_activation)
    torch.library.register_fake("bitlab::attend_at", attend_at)
    torch.library.register_fake("bitlab::normed_linear_group", normed_linear_group)
