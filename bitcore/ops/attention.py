"""Attention of one position, as in decoding token by token, on compiled CPU kernels."""

import torch
from torch import Tensor

from bitcore import extensions

COMPILED = extensions.why_missing() is None  # now: torch.compile cannot trace the question
MAX_HEAD_DIM = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def serves_one_position(q: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether `attend_one_position` can be asked: compiled kernels, a CPU, one query, no gradients wanted."""
    return (
        q.shape[2] == 1
        and q.device.type == "cpu"
        and q.dtype in DTYPES
        and q.shape[3] <= MAX_HEAD_DIM
        and q.stride(3) == keys.stride(3) == values.stride(3) == 1
        and not (torch.is_grad_enabled() and (q.requires_grad or keys.requires_grad or values.requires_grad))
        and COMPILED
    )


def attend_one_position(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q @ keys.T / sqrt(head_dim)) @ values, summed in float32.

    Args:
        q: [batch, heads, 1, head_dim], float32, bfloat16 or float16.
        keys, values: [batch, a divisor of heads, length, head_dim]; rows may lie apart.

    Returns:
        [batch, heads, 1, head_dim] in q's dtype.
    """
    return torch.ops.bitlab.attend_one.default(q, keys, values)  # type: ignore[no-any-return]


def serves_next_position(q: Tensor, cos: Tensor, keys: Tensor) -> bool:
    """Whether `attend_next_position` can be asked: compiled kernels, a CPU, one dtype, no gradients wanted."""
    return (
        q.device.type == cos.device.type == keys.device.type == "cpu"
        and q.dtype is cos.dtype
        and q.dtype is keys.dtype
        and q.dtype in DTYPES
        and keys.shape[3] <= MAX_HEAD_DIM
        and not torch.is_grad_enabled()
        and COMPILED
    )


def attend_next_position(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, past: int
) -> Tensor:
    """Turns q and k, puts k and v behind the `past` positions of a cache, and attends to them all.

    Args:
        q: [batch, 1, heads * head_dim], contiguous.
        k, v: [batch, 1, kv_heads * head_dim], contiguous.
        cos, sin: [1, head_dim], as of a HalfRotary.
        keys, values: the cache, [batch, kv_heads, room, head_dim]; written at `past`.
        past: positions in it.

    Returns:
        [batch, heads, 1, head_dim] in q's dtype.
    """
    return torch.ops.bitlab.attend_next.default(q, k, v, cos, sin, keys, values, past)  # type: ignore[no-any-return]
