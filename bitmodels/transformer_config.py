"""BitTransformerConfig: sizes and parts of a BitTransformer."""

from typing import Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from bitlayers.feed_forward import Activation
from bitmodels.base import BitModelConfig, Size
from bitmodels.rope import RopeConfig

HeadDtype = Literal["float", "int8", "int4", "ternary"]


class BitTransformerConfig(BitModelConfig):
    """Sizes and parts of a BitTransformer. The defaults are a small Llama-style model."""

    vocab_size: Size = 32000
    hidden_size: Size = 512
    intermediate_size: Size = 1536
    num_layers: int = Field(default=8, ge=1, le=10_000)
    num_heads: Size = 8
    num_kv_heads: Size | None = Field(default=None, description="None: as many as num_heads")
    head_dim: int | None = Field(default=None, ge=1, le=2**16, description="None: hidden_size / num_heads")
    max_length: int = Field(default=2048, ge=1, le=2**31 - 1, description="positions of the context")
    activation: Activation = "silu"
    sub_norm: bool = Field(default=False, description="RMSNorms in front of o_proj and down_proj (BitNet b1.58)")
    norm_eps: float = Field(default=1e-5, gt=0.0)
    linear_norm_eps: float | None = Field(default=None, gt=0.0, description="an RMSNorm inside every BitLinear")
    rope: RopeConfig = RopeConfig()
    sliding_window: int | None = Field(default=None, ge=1, description="positions that one attends to; None: all")
    attention_bias: bool = Field(default=False, description="biases of q, k, v and o_proj")
    mlp_bias: bool = Field(default=False, description="biases of gate, up and down_proj")
    attention_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    tie_embeddings: bool = Field(default=False, description="the head multiplies with the table of embeddings")
    head_dtype: HeadDtype = Field(
        default="float", description="weights of embeddings and head; ternary: of the head alone, as the other layers'"
    )
    full_precision: tuple[str, ...] = Field(default=(), description="projections that stay nn.Linear, by their names")
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.num_heads % self.kv_heads != 0:
            raise ValueError(f"num_kv_heads is {self.kv_heads}, expected a divisor of num_heads, {self.num_heads}")
        if self.head_dim is None and self.hidden_size % self.num_heads != 0:
            raise ValueError(f"hidden_size is {self.hidden_size}, expected a multiple of num_heads, or a head_dim")
        if self.head_size % 2 != 0:
            raise ValueError(f"head_dim is {self.head_size}, expected an even number: rotary embedding turns pairs")
        factors = self.rope.frequency_factors
        if factors is not None and len(factors) != self.head_size // 2:
            raise ValueError(f"rope has {len(factors)} frequency_factors, expected head_dim / 2, {self.head_size // 2}")
        if self.head_dtype == "ternary" and self.tie_embeddings:
            raise ValueError("head_dtype is ternary, expected tie_embeddings=False: embeddings are not ternary")
        return self

    def end_tokens(self, tokenizer: Any) -> list[int]:
        """What ends a text, each once: `eos_token_id`, then that of a tokenizer of `transformers`, or of None."""
        own = self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)
        tokens = (*own, getattr(tokenizer, "eos_token_id", None))
        return list(dict.fromkeys(token for token in tokens if token is not None))

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads if self.head_dim is None else self.head_dim
