"""The operator bitlab::triton_linear: Triton's launches as one call that torch.compile and torch.export can trace."""

from contextlib import nullcontext

import torch
from torch import Tensor

from bitcore.kernels.compiled import STORAGE_FORMATS
from bitcore.kernels.triton.launch import Call, Norm, launch


@torch.library.custom_op("bitlab::triton_linear", mutates_args=())
def triton_linear(
    x: Tensor,
    weight_packed: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    mode: int,
    norm_weight: Tensor | None = None,
    norm_eps: float = 0.0,
) -> Tensor:
    """As bitlab::packed_linear (csrc/bindings): x [..., in_features] -> [..., N] in x's dtype.

    norm_weight [in_features] of x's dtype: of x's RMSNorm.
    """
    y = x.new_empty(*x.shape[:-1], weight_packed.shape[0])
    if y.numel() > 0:
        storage_format, granularity, group_size = read_mode(mode)
        call = Call(
            x.reshape(-1, in_features),
            weight_packed.contiguous(),
            weight_scale.contiguous(),
            None if weight_zero_point is None else weight_zero_point.contiguous(),
            None if bias is None else bias.contiguous(),
            y,
            storage_format,
            granularity,
            group_size,
            None if norm_weight is None else Norm(norm_weight.contiguous(), norm_eps),
        )
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():  # Triton launches on the current device
            launch(call)
    return y


@triton_linear.register_fake
def _(
    x: Tensor,
    weight_packed: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    mode: int,
    norm_weight: Tensor | None = None,
    norm_eps: float = 0.0,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight_packed.shape[0])


def read_mode(mode: int) -> tuple[str, str | None, int]:
    """(storage format, activation granularity or None for floating-point ones, group size or 0) of `operator_mode`."""
    return STORAGE_FORMATS[mode >> 8 & 3], ("per_token", "per_tensor", None)[mode >> 10 & 3], mode >> 16
