"""rms_norm: an nn.RMSNorm in fewer steps than PyTorch takes, for the small inputs of decoding."""

import torch
from torch import Tensor, nn

from bitcore.ops import cuda_decoding
from bitcore.ops.attention import COMPILED, DTYPES
from bitlayers.plain import has_forward_of_class


def rms_norm(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """`norm(x)`: on a CPU bit for bit, on a GPU but for the order of the sum.

    PyTorch's own on a CPU is nine operators, one after the other. Where kernels are built and nobody wants a gradient,
    one compiled operator squares and scales, and lets PyTorch sum, in its own order.
    """
    plain = plain_norm(norm, x)
    if plain is not None and x.device.type == "cpu" and COMPILED and not torch.is_grad_enabled():
        return torch.ops.bitlab.rms_norm.default(x, *plain)  # type: ignore[no-any-return]
    if plain is not None and cuda_decoding.serves(x):
        return cuda_decoding.rms_norm(x, *plain)
    return norm(x)  # type: ignore[no-any-return]


def add_rms_norm(norm: nn.RMSNorm, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
    """(x + delta, `rms_norm` of it), both of x's shape [..., n]; without a delta (x, `rms_norm(norm, x)`)."""
    if delta is None:
        return x, rms_norm(norm, x)
    alike = x.dtype is delta.dtype and x.shape == delta.shape and delta.is_contiguous()
    plain = plain_norm(norm, x) if alike and cuda_decoding.serves(x) else None
    if plain is not None:
        return cuda_decoding.add_rms_norm(x, delta, *plain)
    x = x + delta
    return x, rms_norm(norm, x)


def plain_norm(norm: nn.RMSNorm, x: Tensor) -> tuple[Tensor, float] | None:
    """Weight and eps, where `norm(x)` is nothing but the norm of contiguous rows in one dtype; else None."""
    weight, eps = norm._parameters["weight"], norm.eps
    if (
        weight is None
        or eps is None
        or weight.dtype is not x.dtype
        or x.dtype not in DTYPES
        or x.dim() == 0
        or weight.shape != x.shape[-1:]
        or not x.is_contiguous()  # else PyTorch sums in another order
        or type(norm) is not nn.RMSNorm
        or weight.device != x.device
        or not has_forward_of_class(norm)
    ):
        return None
    return weight, eps
