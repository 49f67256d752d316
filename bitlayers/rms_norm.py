"""rms_norm: an nn.RMSNorm in fewer steps than PyTorch takes, for the small inputs of decoding."""

import torch
from torch import Tensor, nn

from bitcore import extensions
from bitcore.ops import cuda_decoding

COMPILED = extensions.why_missing() is None  # now: torch.compile cannot trace the question
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def rms_norm(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """`norm(x)`: on a CPU bit for bit, on a GPU but for the order of the sum.

    PyTorch's own on a CPU is nine operators, one after the other. Where kernels are built and nobody wants a gradient,
    one compiled operator squares and scales, and lets PyTorch sum, in its own order.
    """
    weight, eps = norm._parameters["weight"], norm.eps
    if not is_plain_norm(norm, x) or weight is None or eps is None:
        return norm(x)  # type: ignore[no-any-return]
    if x.device.type == "cpu" and COMPILED and not torch.is_grad_enabled():
        return torch.ops.bitlab.rms_norm.default(x, weight, eps)  # type: ignore[no-any-return]
    return cuda_decoding.rms_norm(x, weight, eps) if cuda_decoding.serves(x) else norm(x)


def add_rms_norm(norm: nn.RMSNorm, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
    """(x + delta, `rms_norm` of it), both of x's shape [..., n]; without a delta (x, `rms_norm(norm, x)`)."""
    if delta is None:
        return x, rms_norm(norm, x)
    weight, eps = norm._parameters["weight"], norm.eps
    alike = x.dtype is delta.dtype and x.shape == delta.shape and delta.is_contiguous()
    if alike and cuda_decoding.serves(x) and is_plain_norm(norm, x) and weight is not None and eps is not None:
        return cuda_decoding.add_rms_norm(x, delta, weight, eps)
    x = x + delta
    return x, rms_norm(norm, x)


def is_plain_norm(norm: nn.RMSNorm, x: Tensor) -> bool:
    """Whether `norm(x)` is nothing but the norm of contiguous rows, in one dtype."""
    weight = norm._parameters["weight"]
    return (
        weight is not None
        and weight.dtype is x.dtype
        and x.dtype in DTYPES
        and x.dim() > 0
        and weight.shape == x.shape[-1:]
        and x.is_contiguous()  # else PyTorch sums in another order
        and type(norm) is nn.RMSNorm
        and not norm._forward_hooks
        and not norm._forward_pre_hooks
    )
