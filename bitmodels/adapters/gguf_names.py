"""Names and row orders of GGUF tensors (llama.cpp's gguf-py/gguf/tensor_mapping.py and conversion of Llama)."""

import torch
from torch import Tensor

from bitcore.exceptions import ArgumentError

MODULES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
LAYER_MODULES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
}
ROPE_FREQUENCIES = "rope_freqs.weight"  # what llama3 scaling divides the frequencies by


def gguf_name(name: str) -> str:
    """The GGUF name of a tensor of a BitTransformerModel: "model.layers.3.mlp.up_proj.weight" is "blk.3.ffn_up.weight".

    Raises:
        ArgumentError: GGUF has no name for it.
    """
    module, _, leaf = name.rpartition(".")
    if module in MODULES:
        return f"{MODULES[module]}.{leaf}"
    _, _, within = module.partition("model.layers.")
    layer, _, part = within.partition(".")
    if part not in LAYER_MODULES:
        raise ArgumentError("name", repr(name), "a tensor that GGUF files have")
    return f"blk.{layer}.{LAYER_MODULES[part]}.{leaf}"


def interleaved(num_heads: int, head_dim: int) -> Tensor:
    """The row of Hugging Face's q_proj or k_proj that each row of a `llama` GGUF file is.

    Both features of a pair that RoPE turns lie next to each other there, where Hugging Face has the halves of a head.
    """
    rows = torch.arange(num_heads * head_dim).reshape(num_heads, 2, head_dim // 2)
    return rows.transpose(1, 2).flatten()


def deinterleaved(num_heads: int, head_dim: int) -> Tensor:
    """The inverse of `interleaved`: the file's row that each row of q_proj or k_proj is."""
    rows = torch.arange(num_heads * head_dim).reshape(num_heads, head_dim // 2, 2)
    return rows.transpose(1, 2).flatten()
