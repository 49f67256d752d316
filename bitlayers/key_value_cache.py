"""KeyValueCache: the keys and values of the positions that an attention block has seen, in memory laid out once."""

from typing import Protocol

import torch
from torch import Tensor

from bitcore.exceptions import ArgumentError, DeviceError, DtypeError, ShapeError


class AttentionCache(Protocol):
    """What BitAttention needs of a cache. A user may write another: quantized, of fixed length.

    One that knows which of its positions the queries attend to says so in `allowed`, a mask as BitAttention takes it,
    in place of the causal one.
    """

    @property
    def length(self) -> int | Tensor:
        """Positions before those that come next."""

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds positions and returns all, [batch, num_kv_heads, at least length, head_dim]; later ones get masked."""


class KeyValueCache:
    """Room for `max_length` positions of one attention block, for decoding token by token.

    Args:
        batch_size, num_kv_heads, max_length, head_dim: sizes, 1 or more.
        device, dtype: of the keys and values.
    """

    def __init__(
        self,
        batch_size: int,
        num_kv_heads: int,
        max_length: int,
        head_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (batch_size, num_kv_heads, max_length, head_dim)
        if min(shape) < 1:
            raise ArgumentError("batch_size, num_kv_heads, max_length, head_dim", shape, "1 or more")
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    @property
    def max_length(self) -> int:
        """Positions that there is room for."""
        return self.keys.shape[2]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds `keys` and `values` [batch, num_kv_heads, new, head_dim]; returns views of all so far.

        Raises:
            ShapeError, DtypeError, DeviceError: they do not fit or find no room; the cache stays as it was.
        """
        self._check(keys, values)
        end = self.length + keys.shape[2]
        if end > self.max_length:
            raise ShapeError("the cache", f"full: {end} positions", f"at most max_length, {self.max_length}")
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def reset(self) -> None:
        """Forgets all positions; the memory stays."""
        self.length = 0

    def _check(self, keys: Tensor, values: Tensor) -> None:
        batch_size, heads, _, head_dim = self.keys.shape
        expected = (batch_size, heads, keys.shape[2] if keys.dim() == 4 else -1, head_dim)
        for name, tensor in (("keys", keys), ("values", values)):
            if tensor.shape != expected:
                shape = f"[{batch_size}, {heads}, new, {head_dim}], as the cache"
                raise ShapeError(name, f"of shape {list(tensor.shape)}", shape)
            if tensor.dtype != self.keys.dtype:
                raise DtypeError(name, tensor.dtype, f"{self.keys.dtype}, the cache's dtype")
            if tensor.device != self.keys.device:
                raise DeviceError(name, f"on {tensor.device}", f"on {self.keys.device}, where the cache is")
