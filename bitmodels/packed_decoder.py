"""A language model as the operator of a decoder's step reads it: whether it can, and the model's tensors."""

from collections.abc import Iterator
from itertools import chain

import torch
from torch import nn

from bitcore.exceptions import KernelNotFoundError
from bitcore.kernels.cpu import CompiledCpuKernel
from bitcore.ops.decoder import Layer, Norm, OpenDecoder, Projection, serves_rows, why_not_served
from bitcore.packed_weight import PackedWeight
from bitlayers import BitAttention, BitEmbedding, BitFeedForward, BitLayer, BitLinear, KeyValueCache
from bitlayers.plain import has_global_hooks, is_plain
from bitmodels.decoder import BitDecoder, BitDecoderLayer, Decoding
from bitmodels.transformer_cache import TransformerCache


def why_not(model: Decoding, cache: TransformerCache) -> str | None:
    """Why the operator cannot step through `model` with `cache`, or None."""
    decoder, keys = model.model, cache.layers[0].keys
    dtype = decoder.norm.weight.dtype
    if keys.device.type != "cpu" or decoder.norm.weight.device.type != "cpu":
        return f"on {decoder.norm.weight.device}, the cache on {keys.device}"
    if any(type(layer) is not KeyValueCache or layer.keys.dtype != dtype for layer in cache.layers):
        return f"in {dtype}, the cache a {type(cache.layers[0]).__name__} in {keys.dtype}"
    if len(cache.layers) != len(decoder.layers):
        return f"of {len(decoder.layers)} layers, the cache of {len(cache.layers)}"
    return _why_not_plain(decoder) or _why_not_packed(decoder, cache, dtype)


def _why_not_plain(decoder: BitDecoder) -> str | None:
    if has_global_hooks() or not all(_parts_are_plain(decoder)):
        return "in training, with hooks, or with modules of other classes"
    return None


def _why_not_packed(decoder: BitDecoder, cache: TransformerCache, dtype: torch.dtype) -> str | None:
    projections = list(projections_of(decoder))
    if any(projection.weight is not None and projection.weight.is_inference() for projection in projections):
        return "with weights made in inference mode, whose changes cannot be seen"
    kernel = kernel_of(projections[0], dtype)
    if kernel is None or any(kernel_of(projection, dtype) is not kernel for projection in projections):
        return "with layers that no compiled CPU kernel serves, or not one alone"
    return why_not_served(kernel, next(_layers_of(decoder, cache)))


def open_decoder(model: Decoding, cache: TransformerCache) -> OpenDecoder:
    """The operator for `model` as it is now. Raises RuntimeError where tensors do not fit each other."""
    decoder, dtype = model.model, model.model.norm.weight.dtype
    kernel = kernel_of(next(projections_of(decoder)), dtype)
    assert kernel is not None
    head, head_kernel = _packed_head(model, kernel, cache.layers[0].keys.shape[0])
    return OpenDecoder(
        kernel,
        list(_layers_of(decoder, cache)),
        _norm(decoder.norm),
        _embedding(decoder.embed_tokens, dtype),
        head,
        head_kernel,
        decoder.config.activation,
        decoder.config.rope.frequencies(decoder.config.head_size),
        decoder.config.rope.attention_scale,
    )


def kernel_of(layer: nn.Module, dtype: torch.dtype) -> CompiledCpuKernel | None:
    """The compiled CPU kernel that serves the layer now, or None."""
    if not isinstance(layer, BitLayer):
        return None
    try:
        kernel = layer._kernel_for(dtype)
    except KernelNotFoundError:  # told by the layer itself, when it is called
        return None
    return kernel if isinstance(kernel, CompiledCpuKernel) else None


def projections_of(decoder: BitDecoder) -> Iterator[BitLinear]:
    """q, k, v, o, gate, up and down of each layer."""
    return chain.from_iterable(map(_layer_projections, decoder.layers))


def norms_of(decoder: BitDecoder) -> Iterator[nn.RMSNorm]:
    """Of each layer, those that there are, and the last."""
    for layer in decoder.layers:
        yield from filter(None, _layer_norms(layer))
    yield decoder.norm


def _layer_projections(layer: nn.Module) -> tuple[BitLinear, ...]:
    assert isinstance(layer, BitDecoderLayer)
    attention, mlp = layer.self_attn, layer.mlp
    assert mlp.gate_proj is not None  # a BitDecoderLayer has one
    mlp_projections = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    return attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, *mlp_projections


def _layer_norms(layer: nn.Module) -> tuple[nn.RMSNorm | None, ...]:
    assert isinstance(layer, BitDecoderLayer)
    attention_norm, mlp_norm = layer.self_attn.attn_sub_norm, layer.mlp.ffn_sub_norm
    return layer.input_layernorm, attention_norm, layer.post_attention_layernorm, mlp_norm


def _parts_are_plain(decoder: BitDecoder) -> Iterator[bool]:
    yield is_plain(decoder, BitDecoder)
    for layer in decoder.layers:
        yield (
            isinstance(layer, BitDecoderLayer)
            and is_plain(layer, BitDecoderLayer)
            and is_plain(layer.self_attn, BitAttention)
            and is_plain(layer.mlp, BitFeedForward)
            and layer.mlp.gate_proj is not None
        )
    for projection in projections_of(decoder):
        yield is_plain(projection, BitLinear) and projection.norm is None
    for norm in norms_of(decoder):
        yield is_plain(norm, nn.RMSNorm) and norm.eps is not None and norm.weight is not None


def _layers_of(decoder: BitDecoder, cache: TransformerCache) -> Iterator[Layer]:
    for layer, own in zip(decoder.layers, cache.layers, strict=True):
        projections = [Projection(linear._packed_weight(), linear.bias) for linear in _layer_projections(layer)]
        yield Layer(
            projections, [None if norm is None else _norm(norm) for norm in _layer_norms(layer)], own.keys, own.values
        )


def _norm(norm: nn.RMSNorm) -> Norm:
    assert norm.eps is not None
    return Norm(norm.weight, norm.eps)


def _embedding(table: nn.Module, dtype: torch.dtype) -> PackedWeight | None:
    """int8 rows, whose look-up the operator knows; others are looked up by the module."""
    if not isinstance(table, BitEmbedding) or not is_plain(table, BitEmbedding):
        return None
    rounded = table._dtype if table.weight is None else table.weight.dtype
    int8 = table.quant_config.weight_dtype == "int8"
    return table._packed_weight() if int8 and rounded in (torch.float32, dtype) else None


def _packed_head(
    model: Decoding, kernel: CompiledCpuKernel, rows: int
) -> tuple[PackedWeight | None, CompiledCpuKernel]:
    """A head that the operator can multiply, and its kernel; else None, and the kernel of the layers."""
    head = model.lm_head if model.lm_head is not None else model.model.embed_tokens
    if isinstance(head, BitLinear):
        plain = is_plain(head, BitLinear) and head.norm is None and head.bias is None
    else:
        plain = is_plain(head, BitEmbedding)
    if not plain:
        return None, kernel
    assert isinstance(head, (BitEmbedding, BitLinear))
    own = kernel_of(head, model.model.norm.weight.dtype)
    if own is None or type(own) is not type(kernel) or not serves_rows(own, rows):
        return None, kernel
    return head._packed_weight(), own
