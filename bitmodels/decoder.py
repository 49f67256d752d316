"""BitDecoder: token embeddings and decoder layers, named as in Hugging Face's Llama and BitNet."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from bitcore.config import BitQuantConfig
from bitcore.exceptions import DtypeError, ShapeError
from bitlayers import BitAttention, BitEmbedding, BitFeedForward
from bitlayers.changes import CountsChanges
from bitlayers.key_value_cache import AttentionCache
from bitlayers.rms_norm import add_rms_norm
from bitlayers.rotary import HalfRotary
from bitmodels.rope import rotary_at
from bitmodels.transformer_cache import TransformerCache
from bitmodels.transformer_config import BitTransformerConfig

TABLE_CONFIGS = {  # of embeddings and head, by head_dtype
    "int8": BitQuantConfig(weight_dtype="int8", weight_granularity="per_channel", activation_dtype="float32"),
    "int4": BitQuantConfig.int4(group_size=64),
}


class BitDecoderLayer(CountsChanges, nn.Module):
    """x + attention(norm(x)), then the same with the MLP block."""

    def __init__(self, config: BitTransformerConfig, quant_config: BitQuantConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = BitAttention(
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            bias=config.attention_bias,
            causal=True,
            sub_norm=config.sub_norm,
            norm_eps=config.norm_eps,
            dropout=config.attention_dropout,
            quant_config=quant_config,
        )
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = BitFeedForward(
            config.hidden_size,
            config.intermediate_size,
            config.activation,
            bias=config.mlp_bias,
            sub_norm=config.sub_norm,
            norm_eps=config.norm_eps,
            quant_config=quant_config,
        )


class BitDecoder(CountsChanges, nn.Module):
    """Token embeddings and decoder layers: everything but the head."""

    def __init__(self, config: BitTransformerConfig, quant_config: BitQuantConfig) -> None:
        super().__init__()
        self.config = config
        table_config = TABLE_CONFIGS.get(config.head_dtype)
        self.embed_tokens = (
            nn.Embedding(config.vocab_size, config.hidden_size)
            if table_config is None
            else BitEmbedding(config.vocab_size, config.hidden_size, quant_config=table_config)
        )
        self.layers = nn.ModuleList(BitDecoderLayer(config, quant_config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: TransformerCache | None = None
    ) -> Tensor:
        """The hidden states [batch, length, hidden_size] in front of the head; see BitTransformerModel.forward."""
        past = 0 if cache is None else cache.length
        total = past + input_ids.shape[1]
        if attention_mask is not None and attention_mask.shape != (input_ids.shape[0], total):
            expected = f"[{input_ids.shape[0]}, {total}]: the positions of the cache and of input_ids"
            raise ShapeError("attention_mask", f"of shape {list(attention_mask.shape)}", expected)
        if attention_mask is not None and attention_mask.is_floating_point():
            raise DtypeError("attention_mask", attention_mask.dtype, "bool or an integer dtype of 0 and 1")
        if total > self.config.max_length:
            expected = f"at most max_length, {self.config.max_length}: shorten the input"
            raise ShapeError("input_ids", f"{total} positions long with those in the cache", expected)
        positions = torch.arange(past, total, device=input_ids.device)
        if attention_mask is not None:
            positions = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, past:]
        mask = self._mask(attention_mask, past, total, input_ids.device)
        hidden = self.run(input_ids, self.rotary(positions), None if cache is None else cache.layers, mask)
        if cache is not None:
            cache.length = total
        return hidden

    def rotary(self, positions: Tensor) -> HalfRotary:
        """The rotary embedding of `positions`, integer [length] or [batch, length]."""
        return rotary_at(self.config.rope, positions, self.config.head_size, self.norm.weight.dtype)

    def run(
        self,
        input_ids: Tensor,
        rotary: HalfRotary,
        caches: Sequence[AttentionCache] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The hidden states of input_ids [batch, length], whose positions are in `rotary`, unchecked."""
        x = self.embed_tokens(input_ids).to(self.norm.weight.dtype)  # a deployed embedding has no dtype of its own
        delta = None
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, BitDecoderLayer)
            cache = None if caches is None else caches[index]
            x, normed = add_rms_norm(layer.input_layernorm, x, delta)
            x, normed = add_rms_norm(layer.post_attention_layernorm, x, layer.self_attn(normed, rotary, mask, cache))
            delta = layer.mlp(normed)
        return add_rms_norm(self.norm, x, delta)[1]

    def _mask(self, attention_mask: Tensor | None, past: int, total: int, device: torch.device) -> Tensor | None:
        """What the causal mask of attention does not say: padding, and the end of a sliding window."""
        window = self.config.sliding_window
        begin = 0 if window is None else max(0, past - (window - 1))  # the first position that a cache gives
        mask = None if attention_mask is None else attention_mask[:, None, None, begin:].bool()
        if window is None or total - begin <= window:
            return mask
        queries = torch.arange(past, total, device=device).unsqueeze(1)
        within = torch.arange(begin, total, device=device) > queries - window
        return within if mask is None else mask & within


class Decoding(Protocol):
    """What steps from token to token need of a language model, such as BitTransformerModel."""

    @property
    def lm_head(self) -> nn.Module | None:
        """The head; None: the table of embeddings."""

    @property
    def model(self) -> BitDecoder:
        """Everything but the head."""

    def logits(self, hidden: Tensor) -> Tensor:
        """The head alone."""

    def next_logits(self, input_ids: Tensor, attention_mask: Tensor | None, cache: TransformerCache | None) -> Tensor:
        """The step layer by layer."""
