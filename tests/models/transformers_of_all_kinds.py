"""Small transformers of every kind, for the tests of models."""

import torch
from torch import Tensor

from bitcore import BitQuantConfig
from bitmodels.transformer import BitTransformerConfig, BitTransformerModel

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "max_length": 32,
}
KINDS = {
    "llama": {},
    "bitnet": {"sub_norm": True, "activation": "relu2", "tie_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True, "num_kv_heads": None, "head_dim": 6},
    "sliding window": {"sliding_window": 4},
    "int4 head": {"head_dtype": "int4"},
    "tied int8 head": {"head_dtype": "int8", "tie_embeddings": True},
    "ternary head": {"head_dtype": "ternary"},
    "inner norms": {"linear_norm_eps": 1e-6, "full_precision": ("model.layers.1.mlp.down_proj",)},
}
# A sum in another order may change a last bit, which may turn an activation's int8 value: 1 of 127, in a row of 32.
TURNED = 0.05  # more than that changes logits, as a `distance`; an error of ours would be near 1
NEAR_TIE = 0.1  # likewise, of the standard deviation of the logits


def make(kind: str, quant_config: BitQuantConfig | None = None, **changes: object) -> BitTransformerModel:
    """A model with random weights; also those that begin as ones or zeros."""
    config = BitTransformerConfig(**{**SIZES, **KINDS[kind], **changes})
    model = BitTransformerModel(config, quant_config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            elif name in ("model.embed_tokens.weight", "lm_head.weight"):
                parameter.normal_()
    return model


def distance(a: Tensor, b: Tensor) -> float:
    """Of logits, relative to their size."""
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def clear_prompt(model: BitTransformerModel, length: int, new_tokens: int) -> list[int]:
    """A random prompt whose greedy continuation is never a near tie, so that the order of sums cannot change it."""
    for _ in range(300):
        tokens = torch.randint(model.config.vocab_size, (1, length))
        if not _has_near_tie(model, tokens, new_tokens):
            return tokens[0].tolist()
    raise AssertionError("every prompt has near ties")


@torch.no_grad()
def _has_near_tie(model: BitTransformerModel, tokens: Tensor, new_tokens: int) -> bool:
    for _ in range(new_tokens):
        logits = model(tokens)[0, -1].float()
        first, second = logits.topk(2).values
        if first - second < NEAR_TIE * logits.std():
            return True
        tokens = torch.cat([tokens, logits.argmax().reshape(1, 1)], 1)
    return False
