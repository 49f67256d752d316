"""TransformerCache: a key-value cache for each layer of a transformer."""

import torch

from bitlayers import KeyValueCache, SlidingKeyValueCache


class TransformerCache:
    """Room for `max_length` positions of a batch; with a `window`, for those that it sees.

    `length` counts the positions so far, `layers` has the cache of each attention block.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        max_length: int,
        head_dim: int,
        window: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.length = 0
        self.layers: list[KeyValueCache] = [
            KeyValueCache(batch_size, num_kv_heads, max_length, head_dim, device, dtype)
            if window is None or window >= max_length
            else SlidingKeyValueCache(batch_size, num_kv_heads, window, head_dim, device, dtype)
            for _ in range(num_layers)
        ]

    def reset(self) -> None:
        """Forgets all positions; the memory stays."""
        self.length = 0
        for layer in self.layers:
            layer.reset()
