"""rms_norm: an nn.RMSNorm in fewer steps than PyTorch takes, for the small inputs of decoding."""

import torch
from torch import Tensor, nn

from bitcore import extensions

COMPILED = extensions.why_missing() is None  # now: torch.compile cannot trace the question
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def rms_norm(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """`norm(x)`, bit for bit.

    PyTorch's own on a CPU is nine operators, one after the other. Where kernels are built and nobody wants a gradient,
    one compiled operator squares and scales, and lets PyTorch sum, in its own order.
    """
    weight = norm._parameters["weight"]
    if (
        torch.is_grad_enabled()
        or x.device.type != "cpu"
        or weight is None
        or weight.dtype is not x.dtype
        or x.dtype not in DTYPES
        or x.dim() == 0
        or weight.shape != x.shape[-1:]
        or norm.eps is None
        or not x.is_contiguous()  # else PyTorch sums in another order
        or type(norm) is not nn.RMSNorm
        or norm._forward_hooks
        or norm._forward_pre_hooks
        or not COMPILED
    ):
        return norm(x)  # type: ignore[no-any-return]
    return torch.ops.bitlab.rms_norm.default(x, weight, norm.eps)  # type: ignore[no-any-return]
