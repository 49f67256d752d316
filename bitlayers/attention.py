"""BitAttention: multi-head attention with quantized projections."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, DtypeError, ShapeError
from bitcore.ops import cuda_decoding
from bitcore.ops.attention import attend_next_position, attend_one_position, serves_next_position, serves_one_position
from bitlayers.changes import CountsChanges
from bitlayers.fixed_length_cache import FixedLengthCache
from bitlayers.key_value_cache import AttentionCache, KeyValueCache
from bitlayers.linear import RMS_NORM_EPS, BitLinear
from bitlayers.linear_group import linear_group
from bitlayers.rms_norm import rms_norm
from bitlayers.rotary import HalfRotary

Rotary = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class BitAttention(CountsChanges, nn.Module):
    """o_proj(sub_norm(attention(q_proj(x), k_proj(x), v_proj(x)))), with BitLinear projections.

    Outside training q, k and v are one operator call (`linear_group`); attention is F.scaled_dot_product_attention.
    Parameters are named as in Hugging Face's Llama and BitNet. The norm in front of the block is its owner's.

    Args:
        hidden_size: width of x and y.
        num_heads: heads of the queries.
        num_kv_heads: heads of keys and values, a divisor of `num_heads` (grouped-query attention); None: as many.
        head_dim: width of a head; None: hidden_size / num_heads.
        bias: whether q_proj, k_proj and v_proj have one.
        output_bias: whether o_proj has one; None: as `bias`.
        causal: each position attends to itself and earlier ones alone.
        sub_norm: an RMSNorm in front of o_proj, `attn_sub_norm` (BitNet b1.58).
        norm_eps: of it.
        dropout: of the attention weights, in training.
        quant_config: of the projections; BitNet b1.58 if None.
        device, dtype: of the parameters.

    Raises:
        ArgumentError: the sizes do not divide each other, or `dropout` is no probability.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        bias: bool = False,
        output_bias: bool | None = None,
        causal: bool = False,
        sub_norm: bool = False,
        norm_eps: float = RMS_NORM_EPS,
        dropout: float = 0.0,
        quant_config: BitQuantConfig | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads != 0:
            raise ArgumentError("num_kv_heads", num_kv_heads, f"a divisor of num_heads, {num_heads}")
        if head_dim is None and hidden_size % num_heads != 0:
            raise ArgumentError("hidden_size", hidden_size, f"a multiple of num_heads, {num_heads}, or a head_dim")
        if not 0 <= dropout < 1:
            raise ArgumentError("dropout", dropout, "0 or more and below 1")
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = hidden_size // num_heads if head_dim is None else head_dim
        self.causal = causal
        self.dropout = dropout

        def projection(in_features: int, out_features: int, bias: bool) -> BitLinear:
            return BitLinear(in_features, out_features, bias, quant_config, device=device, dtype=dtype)

        width = num_heads * self.head_dim
        self.q_proj = projection(hidden_size, width, bias)
        self.k_proj = projection(hidden_size, num_kv_heads * self.head_dim, bias)
        self.v_proj = projection(hidden_size, num_kv_heads * self.head_dim, bias)
        self.o_proj = projection(width, hidden_size, bias if output_bias is None else output_bias)
        self.attn_sub_norm = nn.RMSNorm(width, eps=norm_eps, device=device, dtype=dtype) if sub_norm else None

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | None = None,
        attention_mask: Tensor | None = None,
        cache: AttentionCache | None = None,
    ) -> Tensor:
        """Attention of the positions of `x` to themselves and to those in `cache`.

        Args:
            x: [batch, length, hidden_size].
            rotary: (q [batch, num_heads, length, head_dim], k [batch, num_kv_heads, length, head_dim]) -> the same,
                with the positions of x in them; the cache holds what it gives.
            attention_mask: bool (True: attends) or float (added to the scores), broadcastable to [batch, num_heads,
                length, length of cache and x]. With `causal` it comes on top of the causal mask.
            cache: gets the keys and values of x; None: attention within x alone.

        Returns:
            [batch, length, hidden_size].

        Raises:
            ShapeError, DtypeError, DeviceError: x, the mask or the cache does not fit.
        """
        if x.dim() != 3:
            raise ShapeError("x", f"of shape {list(x.shape)}", f"[batch, length, {self.q_proj.in_features}]")
        q, k, v = linear_group((self.q_proj, self.k_proj, self.v_proj), x)
        if attention_mask is None and isinstance(rotary, HalfRotary):
            y = self._step(q, k, v, rotary, cache)
            if y is not None:
                return self._output(y)
        q, k, v = (
            y.reshape(*y.shape[:2], y.shape[2] // self.head_dim, self.head_dim).transpose(1, 2) for y in (q, k, v)
        )
        if attention_mask is not None:
            _check_mask(attention_mask, q, cache)
        if rotary is not None:
            q, k = rotary(q, k)
        past: int | Tensor = 0
        if cache is not None:
            past = cache.length
            k, v = cache.append(k, v)
        allowed = getattr(cache, "allowed", None)
        if allowed is not None and attention_mask is None:
            mask = allowed
        else:
            mask = self._causal_mask(q, k, past, attention_mask) if self.causal else attention_mask
        return self._output(self._attend(q, k, v, mask).transpose(1, 2).flatten(2))

    def _output(self, y: Tensor) -> Tensor:
        if self.attn_sub_norm is not None:
            y = rms_norm(self.attn_sub_norm, y)
        output: Tensor = self.o_proj(y)
        return output

    def _step(self, q: Tensor, k: Tensor, v: Tensor, rotary: HalfRotary, cache: AttentionCache | None) -> Tensor | None:
        """Attention of one position by one operator that turns, caches and attends, where there is one; else None."""
        if q.shape[1] != 1 or rotary.cos.shape != (1, self.head_dim) or (self.dropout > 0 and self.training):
            return None
        if type(cache) is FixedLengthCache and cuda_decoding.serves_attention(q, rotary.cos, cache.keys):
            caches = cache.keys, cache.values, cache.length, cache.arrivals
            return cuda_decoding.attend_at(q, k, v, rotary.cos, rotary.sin, *caches)
        if type(cache) is KeyValueCache and self._serves_next(q, rotary, cache):
            y = attend_next_position(q, k, v, rotary.cos, rotary.sin, cache.keys, cache.values, cache.length)
            cache.length += 1
            return y.reshape(q.shape)
        return None

    def _serves_next(self, q: Tensor, rotary: HalfRotary, cache: KeyValueCache) -> bool:
        return (
            not torch.compiler.is_compiling()
            and serves_next_position(q, rotary.cos, cache.keys)
            and cache.length < cache.max_length
            and cache.keys.shape[:2] == (q.shape[0], self.num_kv_heads)
            and cache.keys.shape[3] == self.head_dim
        )

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of queries [batch, num_heads, length, head_dim] to the keys, all or those that `mask` lets them."""
        dropout = self.dropout if self.training else 0.0
        if mask is None and dropout == 0 and serves_one_position(q, k, v):
            return attend_one_position(q, k, v)
        shape, grouped = q.shape, self.num_kv_heads != self.num_heads
        is_causal = self.causal and mask is None and shape[2] > 1
        if grouped and shape[2] == 1 and (mask is None or mask.dim() < 3 or mask.shape[-3] == 1):
            # To a key, the heads of its group are as good as positions of one head. PyTorch's grouped attention of one
            # position in bfloat16 takes 8 times as long on a CPU.
            q, grouped = q.reshape(shape[0], self.num_kv_heads, -1, shape[3]), False
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, enable_gqa=grouped)
        return y.reshape(shape)

    def _causal_mask(self, q: Tensor, k: Tensor, past: int | Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """The mask that lets query i, at position past + i, attend to keys 0..past + i; None where SDPA needs none."""
        length, total = q.shape[2], k.shape[2]
        if attention_mask is None and isinstance(past, int) and total == past + length and (past == 0 or length == 1):
            return None
        allowed = torch.arange(total, device=q.device) <= past + torch.arange(length, device=q.device).unsqueeze(1)
        if attention_mask is None:
            return allowed
        if attention_mask.dtype == torch.bool:
            return attention_mask & allowed
        return attention_mask.masked_fill(~allowed, -torch.inf)


def _check_mask(mask: Tensor, q: Tensor, cache: AttentionCache | None) -> None:
    """Raises DtypeError, ShapeError; the shape is not known ahead where a cache of another class gives the keys."""
    if mask.dtype not in (torch.bool, q.dtype):
        raise DtypeError("attention_mask", mask.dtype, f"torch.bool or {q.dtype}, the queries' dtype")
    if cache is not None and type(cache) is not KeyValueCache:
        return
    shape = (*q.shape[:3], q.shape[2] + (0 if cache is None else cache.length))
    fits = mask.dim() <= 4 and all(size in (1, own) for size, own in zip(mask.shape[::-1], shape[::-1], strict=False))
    if not fits:
        expected = f"one that broadcasts to {list(shape)}: batch, num_heads, length, length of cache and x"
        raise ShapeError("attention_mask", f"of shape {list(mask.shape)}", expected)
