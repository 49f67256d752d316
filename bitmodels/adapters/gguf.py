"""What the adapters of GGUF checkpoints share: metadata and names of tensors."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from bitcore.config import BitQuantConfig
from bitcore.exceptions import CheckpointError, ConfigError
from bitmodels.adapters.foreign_model import ForeignModel, unpermuted
from bitmodels.adapters.gguf_end_tokens import read_end_tokens
from bitmodels.adapters.gguf_names import ROPE_FREQUENCIES, gguf_name
from bitmodels.formats import GgufCheckpoint
from bitmodels.formats.gguf_types import TERNARY_FORMATS
from bitmodels.rope import RopeConfig
from bitmodels.transformer_config import BitTransformerConfig

Value = TypeVar("Value", int, float, str)
SCALING_KEYS = {  # of RoPE, after `<architecture>.rope.scaling.`: RopeConfig's field
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
UNREAD_SCALING = ("attn_factor", "yarn_attn_factor", "yarn_ext_factor", "yarn_log_multiplier", "alpha")


class Metadata:
    """A GGUF file's metadata below its architecture's name, looked at with care."""

    def __init__(self, checkpoint: GgufCheckpoint) -> None:
        self.values = checkpoint.config
        self.architecture = str(checkpoint.config["general.architecture"])

    def has(self, key: str) -> bool:
        """Whether `<architecture>.<key>` is there."""
        return f"{self.architecture}.{key}" in self.values

    def get(self, key: str, kind: type[Value], default: Value | None = None) -> Value:
        """`<architecture>.<key>`. Raises CheckpointError where it is of another type, or missing without a default."""
        name = f"{self.architecture}.{key}"
        value: Any = self.values.get(name, default)
        if value is None:
            raise CheckpointError(f"{name} is missing")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind:
            raise CheckpointError(f"{name} is {value!r}, expected one {kind.__name__}")
        return value


def read_gguf(
    checkpoint: GgufCheckpoint,
    *,
    permuted: Callable[[BitTransformerConfig], Callable[[str], Tensor | None]] = lambda config: unpermuted,
    **fields: Any,
) -> ForeignModel:
    """The model of a GGUF checkpoint.

    Args:
        checkpoint: the file.
        permuted: ForeignModel.row_order, made for the config.
        fields: of BitTransformerConfig, which the architecture stands for.

    Raises:
        CheckpointError: metadata is missing, of another type, or asks for what no BitTransformer can do.
    """
    try:
        config = _config(checkpoint, fields)
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    entry = checkpoint.entries.get("token_embd.weight")
    is_bfloat16 = entry is not None and entry.encoding == "bfloat16"
    return ForeignModel(
        config=config,
        quant_config=BitQuantConfig(),
        dtype=torch.bfloat16 if is_bfloat16 else torch.float32,
        floats="ternary",
        foreign_name=gguf_name,
        ignored=(ROPE_FREQUENCIES,),
        row_order=permuted(config),
    )


def _config(checkpoint: GgufCheckpoint, fields: dict[str, Any]) -> BitTransformerConfig:
    metadata = Metadata(checkpoint)
    names, head = checkpoint.entries, checkpoint.entries.get("output.weight")
    vocab_size = names["token_embd.weight"].shape[0] if "token_embd.weight" in names else 1
    hidden_size, num_heads = metadata.get("embedding_length", int), metadata.get("attention.head_count", int)
    if num_heads < 1:
        raise CheckpointError(f"{metadata.architecture}.attention.head_count is {num_heads}, expected 1 or more")
    head_dim = metadata.get("attention.key_length", int, hidden_size // num_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if metadata.get(key, int, head_dim) != head_dim:
            raise CheckpointError(f"{metadata.architecture}.{key} is {metadata.get(key, int)}, expected {head_dim}")
    tokens = {
        f"{which}_token_id": checkpoint.config.get(f"tokenizer.ggml.{key}_token_id")
        for which, key in (("bos", "bos"), ("pad", "padding"))
    }
    return BitTransformerConfig(
        vocab_size=metadata.get("vocab_size", int, vocab_size),
        hidden_size=hidden_size,
        intermediate_size=metadata.get("feed_forward_length", int),
        num_layers=metadata.get("block_count", int),
        num_heads=num_heads,
        num_kv_heads=metadata.get("attention.head_count_kv", int, num_heads),
        head_dim=head_dim,
        max_length=metadata.get("context_length", int),
        norm_eps=_shortest(metadata.get("attention.layer_norm_rms_epsilon", float)),
        rope=_rope(checkpoint, metadata),
        sliding_window=metadata.get("attention.sliding_window", int, 0) or None,
        attention_bias="blk.0.attn_q.bias" in names,
        mlp_bias="blk.0.ffn_gate.bias" in names,
        tie_embeddings=head is None,
        head_dtype="ternary" if head is not None and head.encoding in TERNARY_FORMATS else "float",
        eos_token_id=read_end_tokens(checkpoint.config),
        **tokens,
        **fields,
    )


def _rope(checkpoint: GgufCheckpoint, metadata: Metadata) -> RopeConfig:
    theta = _shortest(metadata.get("rope.freq_base", float, 10000.0))
    for key in UNREAD_SCALING:
        if metadata.has(f"rope.scaling.{key}"):
            raise CheckpointError(f"{metadata.architecture}.rope.scaling.{key} is there, which is not read")
    kind = metadata.get("rope.scaling.type", str, "none")
    given: dict[str, Any] = {
        field: _shortest(metadata.get(f"rope.scaling.{key}", float))
        for key, field in SCALING_KEYS.items()
        if metadata.has(f"rope.scaling.{key}")
    }
    if ROPE_FREQUENCIES in checkpoint.entries:
        factors = checkpoint.read(ROPE_FREQUENCIES)
        if not isinstance(factors, Tensor) or kind != "none":
            raise CheckpointError(f"{ROPE_FREQUENCIES} is there beside rope.scaling.type {kind}, expected either")
        return RopeConfig(rope_theta=theta, rope_type="factors", frequency_factors=tuple(factors.float().tolist()))
    if metadata.has("rope.scale_linear"):  # the older name
        kind, given = "linear", {"factor": metadata.get("rope.scale_linear", float)}
    if kind == "none" or (kind == "linear" and given.get("factor", 1.0) == 1):
        return RopeConfig(rope_theta=theta)
    return RopeConfig(rope_theta=theta, rope_type=kind, **given)


def _shortest(value: float) -> float:
    """A float32 number as the shortest decimal that it is: 1e-5, not 9.99999974e-6."""
    shortest = float(f"{value:.7g}")
    return shortest if torch.tensor(shortest).item() == value else value
