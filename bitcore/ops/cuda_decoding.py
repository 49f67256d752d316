"""The steps between the products of a token on CUDA GPUs, each one launch: norms, gated activations, attention.

Nothing here is known to autograd, and each function has to be asked for with what `serves` agrees to.
"""

from functools import cache

import torch
from torch import Tensor

from bitcore.kernels.cuda import ROW_SOURCES, CudaKernel
from bitcore.ops.attention import DTYPES, MAX_HEAD_DIM

MAX_NORMED = 32768
HEAD_DIM_MULTIPLE = 16


@cache
def _unavailable_reason() -> str | None:
    return CudaKernel.unavailable_reason()


def serves(x: Tensor) -> bool:
    """Whether the operators can be asked about rows x: compiled kernels, their GPU, no gradients, no tracing."""
    return (
        x.is_cuda
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.dtype in DTYPES
        and x.dim() >= 1
        and 1 <= x.shape[-1] <= MAX_NORMED
        and x.is_contiguous()
        and _unavailable_reason() is None
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of rows x [..., n] (arXiv 1910.07467): x / sqrt(mean(x^2) + eps) * weight [n], rounded once."""
    y: Tensor = torch.ops.bitlab.rms_norm.default(x, weight, eps)
    return y


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + delta, its `rms_norm`), all [..., n]."""
    total, y = torch.ops.bitlab.add_rms_norm.default(x, delta, weight, eps)
    return total, y


def gated_activation(gate: Tensor, up: Tensor, activation: str, weight: Tensor | None, eps: float) -> Tensor:
    """activation(gate) * up [..., n], each rounded as PyTorch's operators do; with a weight [n], its `rms_norm`."""
    number = ROW_SOURCES.index(activation) - ROW_SOURCES.index("relu2")
    y: Tensor = torch.ops.bitlab.gated_activation.default(gate, up, weight, eps, number)
    return y


def serves_attention(q: Tensor, cos: Tensor, keys: Tensor) -> bool:
    """Whether `attend_at` can be asked: what `serves` says, 16-bit floats, a head_dim in multiples of 16 up to 256."""
    return (
        serves(q)
        and q.dtype is not torch.float32
        and q.dtype is cos.dtype is keys.dtype
        and q.shape[1] == 1
        and keys.shape[3] <= MAX_HEAD_DIM
        and keys.shape[3] % HEAD_DIM_MULTIPLE == 0
        and cos.numel() == keys.shape[3]
    )


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
    """Turns q and k, writes k and v into a cache at `position`, and attends to the positions 0 to `position`.

    Args:
        q: [batch, 1, heads * head_dim], bfloat16 or float16, contiguous.
        k, v: [batch, 1, kv_heads * head_dim], contiguous.
        cos, sin: [1, head_dim], as of a HalfRotary.
        keys, values: the cache, [batch, kv_heads, room, head_dim]; written at `position`.
        position: int64 [1], 0 to room - 1.
        arrivals: int32 [batch * heads], 0 before and after.

    Returns:
        [batch, 1, heads * head_dim] in q's dtype.
    """
    y: Tensor = torch.ops.bitlab.attend_at.default(q, k, v, cos, sin, keys, values, position, arrivals)
    return y
