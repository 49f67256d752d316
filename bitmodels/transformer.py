"""BitTransformer: a decoder-only language model of BitAttention and BitFeedForward blocks.

One class for the ternary models there are: Llama-style ones (SwiGLU, no sub-norms: Falcon-E, TriLM) and BitNet-style
ones (relu², sub-norms, tied embeddings: BitNet b1.58 2B4T).
"""

from collections.abc import Iterator, Sequence
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, DtypeError, LayerStateError, ShapeError
from bitlayers import BitEmbedding, BitLinear
from bitmodels.base import BitModelBase
from bitmodels.decoder import TABLE_CONFIGS, BitDecoder
from bitmodels.decoding_graph import DecodingGraph
from bitmodels.decoding_step import DecodingStep
from bitmodels.generation import GenerationOptions, start_generation
from bitmodels.registry import register_model
from bitmodels.transformer_cache import TransformerCache
from bitmodels.transformer_config import BitTransformerConfig

__all__ = ["BitTransformerConfig", "BitTransformerModel"]

INITIAL_STD = 0.02  # of embeddings and head


@register_model("transformer")
class BitTransformerModel(BitModelBase):
    """input_ids [batch, length] -> logits [batch, length, vocab_size].

    `head_dtype` int8 and int4 store embeddings and head in 8.01 and 4.5 bits a weight (one scale a row, one for 64
    weights) and leave activations in floating point. Compiled kernels multiply them.
    """

    config_class = BitTransformerConfig
    config: BitTransformerConfig

    def __init__(self, config: BitTransformerConfig, quant_config: BitQuantConfig | None = None) -> None:
        super().__init__(config, quant_config)
        self.model = BitDecoder(config, self.quant_config)
        self.lm_head = None if config.tie_embeddings else self._head()
        for table in (self.model.embed_tokens, self.lm_head):
            if table is not None:
                nn.init.normal_(table.weight, std=INITIAL_STD)
        for name in config.full_precision:
            self._keep_in_full_precision(name)
        if config.linear_norm_eps is not None:
            for module in self.modules():
                if isinstance(module, BitLinear) and (module is not self.lm_head or config.head_dtype == "ternary"):
                    module.norm = nn.RMSNorm(module.in_features, eps=config.linear_norm_eps)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: TransformerCache | None = None
    ) -> Tensor:
        """The logits of the token that follows each position.

        Args:
            input_ids: integer [batch, length], 0 to vocab_size - 1.
            attention_mask: bool or 0 and 1 [batch, length of cache and input_ids], 0 for padding, on any side:
                positions are counted without it. Logits at padding mean nothing.
            cache: of the positions before (`new_cache`); gets those of input_ids.

        Returns:
            [batch, length, vocab_size] in the dtype of the model.

        Raises:
            ShapeError, DtypeError: the arguments do not fit each other, or are longer than the context.
            IndexError: a token is not in the vocabulary (on a GPU: PyTorch's device-side assertion).
        """
        if input_ids.dim() != 2:
            raise ShapeError("input_ids", f"of shape {list(input_ids.shape)}", "[batch, length]")
        if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
            raise DtypeError("input_ids", input_ids.dtype, "an integer dtype")
        return self.logits(self.model(input_ids, attention_mask, cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """The head alone: hidden [..., hidden_size] -> [..., vocab_size]."""
        if self.lm_head is not None:
            logits: Tensor = self.lm_head(hidden)
            return logits
        table = self.model.embed_tokens
        return table.logits(hidden) if isinstance(table, BitEmbedding) else F.linear(hidden, table.weight)

    def next_logits(self, input_ids: Tensor, attention_mask: Tensor | None, cache: TransformerCache | None) -> Tensor:
        """The logits [batch, vocab_size] of the token after the last position, those of the others not computed.

        The arguments are those of `forward`, on any device.
        """
        device = self.model.norm.weight.device
        mask = None if attention_mask is None else attention_mask.to(device)
        return self.logits(self.model(input_ids.to(device), mask, cache)[:, -1])

    @overload
    def generate(
        self,
        input_ids: Tensor | Sequence[Sequence[int]],
        *,
        stream: Literal[False] = False,
        **options: Unpack[GenerationOptions],
    ) -> Tensor: ...

    @overload
    def generate(
        self, input_ids: Tensor | Sequence[Sequence[int]], *, stream: bool, **options: Unpack[GenerationOptions]
    ) -> Tensor | Iterator[Tensor]: ...

    def generate(
        self, input_ids: Tensor | Sequence[Sequence[int]], *, stream: bool = False, **options: Unpack[GenerationOptions]
    ) -> Tensor | Iterator[Tensor]:
        """Continues each prompt until it ends, token by token, without gradients; the model must be in eval mode.

        Args:
            input_ids: integer [batch, length], or a list of prompts, which may differ in length.
            stream: True returns an iterator over the next token of each row, int64 [batch], as they are made.
            attention_mask: bool or 0 and 1 [batch, length], 0 for padding, on any side; None: none is padding.
            max_new_tokens: of each prompt; None: as many as the context has room for.
            do_sample: draw tokens at random; False: take the likeliest.
            temperature: with do_sample: divides the logits; None: 1.
            top_k: with do_sample: draw from the k likeliest; None: from all.
            top_p: with do_sample: draw from the fewest that have this probability together; None: from all.
            eos_token_id: what ends a row, one or several; None: the config's.
            pad_token_id: fills rows that have ended; None: the config's, else the first eos_token_id, else 0.
            stop_strings: a row ends once this, or one of these, is in the text of its new tokens.
            tokenizer: for stop_strings.
            generator: of the random numbers; None: PyTorch's own.
            use_cache: False computes all positions again for every token.

        Returns:
            int64 [batch, longest prompt + new tokens]: prompts, padded on the left, and what follows.

        Raises:
            ArgumentError, ShapeError, DtypeError: an argument is out of range, or a prompt is empty or, with
                max_new_tokens, longer than the context.
            LayerStateError: the model is in training mode.
            NonFiniteError: the logits of a prompt are NaN.
        """
        if self.training:
            raise LayerStateError(f"{type(self).__name__} is in training mode: call eval() or deploy() first")
        known = GenerationOptions.__annotations__
        unknown = [name for name in options if name not in known]
        if unknown:
            raise ArgumentError("generate", f"given {', '.join(unknown)}", f"only {', '.join(known)}")
        prompts, tokens = start_generation(self, input_ids, **options)
        if stream:
            return tokens
        whole = torch.cat([prompts, torch.stack(list(tokens), 1)], 1)
        return whole.to(input_ids.device) if isinstance(input_ids, Tensor) else whole

    def new_cache(self, batch_size: int, max_length: int | None = None) -> TransformerCache:
        """An empty cache with room for `max_length` positions; None: the whole context."""
        norm = self.model.norm.weight
        return TransformerCache(
            num_layers=self.config.num_layers,
            batch_size=batch_size,
            num_kv_heads=self.config.kv_heads,
            max_length=self.config.max_length if max_length is None else max_length,
            head_dim=self.config.head_size,
            window=self.config.sliding_window,
            device=norm.device,
            dtype=norm.dtype,
        )

    def steps_from(self, cache: TransformerCache) -> DecodingGraph | DecodingStep | None:
        """The steps after those in `cache`, for `generate`: a graph on a GPU, one operator on a CPU, else None."""
        if DecodingGraph.serves(cache):
            return DecodingGraph(self, cache)
        own = (
            type(self).logits is BitTransformerModel.logits
            and type(self).next_logits is BitTransformerModel.next_logits
        )
        return DecodingStep(self, cache) if own and DecodingStep.serves(self, cache) else None

    def _head(self) -> nn.Linear:
        sizes = (self.config.hidden_size, self.config.vocab_size)
        if self.config.head_dtype == "float":
            return nn.Linear(*sizes, bias=False)
        table_config = TABLE_CONFIGS.get(self.config.head_dtype, self.quant_config)
        return BitLinear(*sizes, bias=False, quant_config=table_config)

    def _keep_in_full_precision(self, name: str) -> None:
        try:
            module = self.get_submodule(name)
        except AttributeError:
            module = None
        if not isinstance(module, BitLinear):
            raise ArgumentError(
                "config.full_precision", repr(name), "the name of a BitLinear, such as model.layers.0..."
            )
        self.set_submodule(name, nn.Linear(module.in_features, module.out_features, module.bias is not None))
