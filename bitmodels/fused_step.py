"""FusedStep: a token through a BitDecoder on a CUDA GPU, a layer in five or six launches.

A product takes the norm in front of it, and what that reads, along: residual sum, activation and gate.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from bitcore.kernels.cuda import CudaKernel
from bitcore.ops import cuda_decoding
from bitlayers import BitAttention, BitFeedForward, BitLinear
from bitlayers.feed_forward import warns
from bitlayers.fixed_length_cache import FixedLengthCache
from bitlayers.plain import has_global_hooks, is_plain
from bitlayers.rms_norm import add_rms_norm, plain_norm
from bitlayers.rotary import HalfRotary
from bitmodels.decoder import BitDecoder, BitDecoderLayer


class FusedStep:
    """`BitDecoder.run` for one token, with the same roundings. Ask `serves` first."""

    def __init__(self, decoder: BitDecoder) -> None:
        self._decoder = decoder
        self._layers = [layer for layer in decoder.layers if isinstance(layer, BitDecoderLayer)]

    @staticmethod
    def serves(decoder: BitDecoder, example: Tensor) -> bool:
        """Whether all layers are what is fused, for hidden states like `example` [batch, 1, hidden_size]."""
        if has_global_hooks() or not cuda_decoding.serves(example):
            return False
        return all(_is_fusible(layer, example) for layer in decoder.layers)

    def __call__(self, input_ids: Tensor, rotary: HalfRotary, caches: Sequence[FixedLengthCache]) -> Tensor:
        """The hidden states [batch, 1, hidden_size] of input_ids [batch, 1]."""
        x = self._decoder.embed_tokens(input_ids).to(self._decoder.norm.weight.dtype)
        delta: Tensor | None = None
        for layer, cache in zip(self._layers, caches, strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            (q, k, v), x = _after_sum(projections, layer.input_layernorm, x, delta)
            at = cache.keys, cache.values, cache.length, cache.arrivals
            y = cuda_decoding.attend_at(q, k, v, rotary.cos, rotary.sin, *at)
            (delta,) = _products((attention.o_proj,), attention.attn_sub_norm, "copy", y, None)
            (gate, up), x = _after_sum(_gate_and_up(mlp), layer.post_attention_layernorm, x, delta)
            (delta,) = _products((mlp.down_proj,), mlp.ffn_sub_norm, mlp.activation, gate, up)
        return add_rms_norm(self._decoder.norm, x, delta)[1]


def _after_sum(
    layers: Sequence[BitLinear], norm: nn.RMSNorm, x: Tensor, delta: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """(the products of norm(x + delta), x + delta)."""
    if delta is None:
        return _products(layers, norm, "copy", x, None), x
    *outputs, x = _products(layers, norm, "add", x, delta)
    return outputs, x


def _products(
    layers: Sequence[BitLinear], norm: nn.RMSNorm | None, source: str, x: Tensor, other: Tensor | None
) -> list[Tensor]:
    kernel = layers[0]._kernel_for(x.dtype)
    assert isinstance(kernel, CudaKernel)
    weights = [layer._packed_weight() for layer in layers]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    of_norm = None if norm is None else (norm.weight, norm.eps or 0.0)
    return kernel.normed_linear_group(source, x, other, of_norm, weights, biases)


def _gate_and_up(mlp: BitFeedForward) -> tuple[BitLinear, BitLinear]:
    assert mlp.gate_proj is not None
    return mlp.gate_proj, mlp.up_proj


def _is_fusible(layer: nn.Module, x: Tensor) -> bool:
    if not isinstance(layer, BitDecoderLayer):
        return False
    attention, mlp = layer.self_attn, layer.mlp
    if not (is_plain(attention, BitAttention) and is_plain(mlp, BitFeedForward) and mlp.gate_proj is not None):
        return False
    if warns(mlp.activation, x.dtype):
        return False
    head = x.new_empty(x.shape[0], 1, attention.head_dim)
    return (
        cuda_decoding.serves_attention(head, head[:1], head.unsqueeze(1))
        and _are_products((attention.q_proj, attention.k_proj, attention.v_proj), x)
        and _are_products((attention.o_proj,), x)
        and _are_products((mlp.gate_proj, mlp.up_proj), x)
        and _are_products((mlp.down_proj,), x)
        and _is_norm(layer.input_layernorm, x)
        and _is_norm(layer.post_attention_layernorm, x)
        and (attention.attn_sub_norm is None or _is_norm(attention.attn_sub_norm, x))
        and (mlp.ffn_sub_norm is None or _is_norm(mlp.ffn_sub_norm, x))
    )


def _are_products(layers: Sequence[nn.Module], x: Tensor) -> bool:
    """Whether they are nothing but products on one CUDA kernel, all with biases or none."""
    linears = [layer for layer in layers if isinstance(layer, BitLinear) and is_plain(layer, BitLinear)]
    if len(linears) < len(layers) or any(layer.norm is not None for layer in linears):
        return False
    first, *others = (layer._kernel_for(x.dtype) for layer in linears)
    biases = sum(layer.bias is not None for layer in linears)
    return isinstance(first, CudaKernel) and all(other is first for other in others) and biases in (0, len(linears))


def _is_norm(norm: nn.RMSNorm, x: Tensor) -> bool:
    return plain_norm(norm, x.new_empty(norm.normalized_shape)) is not None
