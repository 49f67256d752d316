"""Tiny causal language models of transformers, one of a kind, with random weights."""

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SIZES = {
    "vocab_size": 48,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied llama": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma": ("gemma", {"head_dim": 16}),
    "mistral": ("mistral", {}),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "falcon": ("falcon", {"bias": True}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def language_model(kind: str, **changes: Any) -> PreTrainedModel:
    """A model of `kind` in eval mode."""
    model_type, own = KINDS[kind]
    config = AutoConfig.for_model(model_type, **{**SIZES, **own, **changes})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    return model
