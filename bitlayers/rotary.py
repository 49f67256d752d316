"""HalfRotary: rotary position embedding whose pairs are a head's features i and i + head_dim / 2."""

import torch
from torch import Tensor


class HalfRotary:
    """(q, k) -> (q, k), [batch, heads, length, head_dim] each, turned by the angles of their positions.

    Args:
        cos, sin: of the angles, twice, [length, head_dim] or [batch, 1, length, head_dim] in the dtype of q and k; the
            first half of `sin` is negative.
    """

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        self.cos, self.sin = cos, sin

    def __call__(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self._turned(q), self._turned(k)

    def _turned(self, x: Tensor) -> Tensor:
        return torch.addcmul(x * self.cos, x.roll(x.shape[-1] // 2, -1), self.sin)
