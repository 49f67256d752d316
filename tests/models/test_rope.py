"""Rotary embedding against transformers' own."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from bitcore.exceptions import ConfigError
from bitmodels.rope import RopeConfig, rotary_at

PARAMETERS = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 0.5},
    {
        "rope_type": "yarn",
        "factor": 2.5,
        "original_max_position_embeddings": 900,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 0.5,
        "truncate": False,
    },
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_equals_transformers(parameters: dict, theta: float) -> None:
    llama = LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters={**parameters, "rope_theta": theta})
    config = RopeConfig(**parameters, rope_theta=theta)
    if parameters["rope_type"] != "default":
        frequencies, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](llama)
        torch.testing.assert_close(config.frequencies(64), frequencies, rtol=1e-6, atol=0)
        assert config.attention_scale == pytest.approx(scale, rel=1e-12)
    q, k = torch.randn(2, 4, 6, 64), torch.randn(2, 2, 6, 64)
    positions = torch.randint(0, 500, (2, 6))
    cos, sin = LlamaRotaryEmbedding(llama)(q, positions)
    expected = apply_rotary_pos_emb(q, k, cos, sin)
    got = rotary_at(config, positions, 64, q.dtype)(q, k)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)  # 500 times an angle's last bit
    one_by_one = rotary_at(config, positions[0], 64, q.dtype)(q[:1], k[:1])
    torch.testing.assert_close(one_by_one, (got[0][:1], got[1][:1]), rtol=0, atol=0)


def test_factors_divide_frequencies() -> None:
    factors = tuple(torch.rand(8).add(0.5).tolist())
    config = RopeConfig(rope_type="factors", frequency_factors=factors)
    torch.testing.assert_close(config.frequencies(16) * torch.tensor(factors), RopeConfig().frequencies(16))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_type": "yarn", "factor": 2.0}, "rope_type yarn needs original_max_position_embeddings"),
        ({"rope_type": "dynamic"}, "rope_type"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"frequency_factors": (1.0,)}, "frequency_factors go with rope_type factors"),
        ({"rope_type": "factors", "frequency_factors": (0.0,)}, "positive and finite"),
        (
            {"low_freq_factor": 4.0, "rope_type": "llama3", "original_max_position_embeddings": 8},
            "low_freq_factor is 4",
        ),
    ],
)
def test_wrong_configs_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RopeConfig(**fields)
