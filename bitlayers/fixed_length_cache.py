"""FixedLengthCache: a key-value cache whose next position only the device knows, for steps captured as a graph."""

import torch
from torch import Tensor

from bitlayers.key_value_cache import KeyValueCache


class FixedLengthCache:
    """The memory of a KeyValueCache, written at a position that a tensor holds.

    Args:
        cache: whose memory.
        position: int64 [1] on its device, the position that comes next.
        arrivals: int32 [batch * heads of the queries] of zeros, which `attend_at` counts in.
    """

    def __init__(self, cache: KeyValueCache, position: Tensor, arrivals: Tensor) -> None:
        self.keys, self.values = cache.keys, cache.values
        self.length, self.arrivals = position, arrivals

    @property
    def allowed(self) -> Tensor:
        """bool [1, max_length]: the positions so far and this one."""
        positions = torch.arange(self.keys.shape[2], device=self.length.device)
        return (positions <= self.length).unsqueeze(0)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes one position; returns all, those that are not `allowed` among them."""
        self.keys.index_copy_(2, self.length, keys)
        self.values.index_copy_(2, self.length, values)
        return self.keys, self.values
