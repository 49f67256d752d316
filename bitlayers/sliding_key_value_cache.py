"""SlidingKeyValueCache: the keys and values that a sliding window of attention still sees."""

import torch
from torch import Tensor

from bitcore.exceptions import ArgumentError
from bitlayers.key_value_cache import KeyValueCache


class SlidingKeyValueCache(KeyValueCache):
    """As KeyValueCache, for attention to the last `window` positions: it never fills up.

    Args:
        batch_size, num_kv_heads, head_dim: sizes, 1 or more.
        window: positions that one position attends to, itself among them.
        device, dtype: of the keys and values.

    Its memory is 2 * window - 1 positions: where it ends, what is still seen moves to the front, once in `window`
    tokens. `length` counts the positions that the next one still sees.
    """

    def __init__(
        self,
        batch_size: int,
        num_kv_heads: int,
        window: int,
        head_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if window < 1:
            raise ArgumentError("window", window, "1 or more")
        super().__init__(batch_size, num_kv_heads, 2 * window - 1, head_dim, device, dtype)
        self.window = window
        self._end = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds `keys` and `values` [batch, num_kv_heads, new, head_dim]; returns those still seen, and them.

        Raises:
            ShapeError, DtypeError, DeviceError: they do not fit; the cache stays as it was.
        """
        self._check(keys, values)
        seen, new = slice(self._end - self.length, self._end), keys.shape[2]
        if self.length + new > self.max_length:  # a long prompt: only its end is kept
            all_keys = torch.cat([self.keys[:, :, seen], keys], 2)
            all_values = torch.cat([self.values[:, :, seen], values], 2)
            kept = slice(all_keys.shape[2] - (self.window - 1), None)
            self._end = self.length = self.window - 1
            self.keys[:, :, : self._end] = all_keys[:, :, kept]
            self.values[:, :, : self._end] = all_values[:, :, kept]
            return all_keys, all_values
        if self._end + new > self.max_length:
            self.keys[:, :, : self.length] = self.keys[:, :, seen].clone()
            self.values[:, :, : self.length] = self.values[:, :, seen].clone()
            self._end = self.length
        begin, end = self._end - self.length, self._end + new
        self.keys[:, :, self._end : end] = keys
        self.values[:, :, self._end : end] = values
        self._end, self.length = end, min(self.length + new, self.window - 1)
        return self.keys[:, :, begin:end], self.values[:, :, begin:end]

    def reset(self) -> None:
        """Forgets all positions; the memory stays."""
        super().reset()
        self._end = 0
