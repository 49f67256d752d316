"""Scales as files hold them, brought into the granularities that PackedWeight knows."""

from collections.abc import Callable

import torch
from torch import Tensor

from bitcore.checks import refuse
from bitcore.config import BitQuantConfig
from bitcore.exceptions import ShapeError


def simplest_scale(scale: Tensor, is_zero: Callable[[], Tensor]) -> Tensor:
    """One scale [1] if all are equal, else one a row [N] if those of a row are, else the fewest groups [N, groups].

    A group of zero weights is as good with any scale, and encoders leave 0 there: it takes the largest of its row.

    Args:
        scale: float32 [N, groups], or [1, 1] for the whole matrix.
        is_zero: bool like `scale`: the groups without a weight but 0. Asked for where a scale is 0.

    Raises:
        QuantizationError: a scale is NaN, infinite or negative, or 0 for weights that are not all zero.
    """
    refuse("scale", scale, ~scale.isfinite(), "positive and finite")
    if not bool((scale > 0).all()):
        refuse("scale", scale, (scale < 0) | ((scale == 0) & ~is_zero()), "positive and finite")
        for largest in (scale.amax(1, keepdim=True), scale.amax().reshape(1, 1), torch.ones_like(scale[:1, :1])):
            scale = scale.where(scale > 0, largest)
    if bool((scale == scale[0, 0]).all()):
        return scale[0, :1].clone()  # without what it was cut from
    if bool((scale == scale[:, :1]).all()):
        return scale[:, 0].clone()
    rows, groups = scale.shape
    for fewer in (number for number in range(2, groups) if groups % number == 0):
        together = scale.reshape(rows, fewer, -1)
        if bool((together == together[:, :, :1]).all()):
            return together[:, :, 0].clone()
    return scale


def zero_groups(ternary: Tensor, groups: int) -> Tensor:
    """Which groups of the rows of `ternary` int8 [N, K] hold nothing but 0: bool [N, groups]."""
    return ~ternary.reshape(ternary.shape[0], groups, -1).any(-1)


def config_for(scale: Tensor, in_features: int, config: BitQuantConfig) -> BitQuantConfig:
    """`config` with the granularity that `scale` [1], [N] or [N, groups] has; everything else stays."""
    if scale.dim() == 2:
        group_size = in_features // scale.shape[1]
        return config.model_copy(update={"weight_granularity": "per_group", "group_size": group_size})
    granularity = "per_tensor" if scale.shape[0] == 1 else "per_channel"
    return config.model_copy(update={"weight_granularity": granularity})


def scale_of_blocks(scale: Tensor, out_features: int, in_features: int, block_size: int) -> Tensor:
    """`scale` [1], [N] or [N, groups] as [N, K / block_size].

    Raises:
        ShapeError: a block would need more than one scale.
    """
    blocks = in_features // block_size
    if scale.dim() == 1:
        return scale.reshape(-1, 1).expand(out_features, blocks)
    group_size = -(-in_features // scale.shape[1])
    if group_size % block_size != 0:
        raise ShapeError(
            "weight_scale", f"for groups of {group_size} weights", f"one for each block of {block_size} or more"
        )
    return scale.repeat_interleave(group_size // block_size, dim=1)[:, :blocks]
