"""Rotary position embedding (RoPE, arXiv 2104.09864) with its scalings for longer contexts.

A head's features i and i + head_dim / 2 are one pair, turned by position * frequency_i:

    default   frequency_i = theta^(-2 i / head_dim)
    linear    frequency_i / factor
    llama3    long waves / factor, short ones as they are, a linear blend in between (Llama 3.1)
    yarn      the same by the number of turns within the original context, and q and k multiplied (arXiv 2309.00071)
    factors   frequency_i / frequency_factors_i, as GGUF files store llama3

Fields have the names that Hugging Face's `rope_parameters` have, and mean the same.
"""

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from typing_extensions import Self

from bitlayers.rotary import HalfRotary

RopeType = Literal["default", "linear", "llama3", "yarn", "factors"]


class RopeConfig(BaseModel):
    """Frequencies of a rotary position embedding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rope_theta: float = Field(default=10000.0, gt=1.0, allow_inf_nan=False)
    rope_type: RopeType = "default"
    factor: float = Field(default=1.0, gt=0.0, allow_inf_nan=False, description="linear, llama3, yarn: longer context")
    original_max_position_embeddings: int | None = Field(default=None, ge=1, description="llama3, yarn: trained length")
    low_freq_factor: float = Field(default=1.0, gt=0.0, description="llama3")
    high_freq_factor: float = Field(default=4.0, gt=0.0, description="llama3")
    beta_fast: float = Field(default=32.0, gt=0.0, description="yarn: turns from which on nothing is scaled")
    beta_slow: float = Field(default=1.0, gt=0.0, description="yarn: turns up to which all is scaled")
    attention_factor: float | None = Field(default=None, gt=0.0, description="yarn: of q and k; None: by factor")
    mscale: float | None = Field(default=None, description="yarn: changes the attention factor, with mscale_all_dim")
    mscale_all_dim: float | None = None
    truncate: bool = Field(default=True, description="yarn: the blend begins and ends at whole features")
    frequency_factors: tuple[float, ...] | None = Field(default=None, description="factors: one a pair of features")

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.rope_type in ("llama3", "yarn") and self.original_max_position_embeddings is None:
            raise ValueError(f"rope_type {self.rope_type} needs original_max_position_embeddings")
        if self.rope_type == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            high = f"high_freq_factor, {self.high_freq_factor}"
            raise ValueError(f"low_freq_factor is {self.low_freq_factor}, expected less than {high}")
        if (self.rope_type == "factors") != (self.frequency_factors is not None):
            raise ValueError("frequency_factors go with rope_type factors")
        if self.frequency_factors is not None and not all(0 < factor < math.inf for factor in self.frequency_factors):
            raise ValueError("frequency_factors must be positive and finite")
        return self

    @property
    def attention_scale(self) -> float:
        """What cosines and sines are multiplied by: 1 but for yarn."""
        if self.rope_type != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    def _mscale(self, weight: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * weight * math.log(self.factor) + 1.0

    def frequencies(self, head_dim: int, device: torch.device | str | None = None) -> Tensor:
        """Radians a position: float32 [head_dim / 2]."""
        exponents = torch.arange(0, head_dim, 2, device=device).float() / head_dim
        frequencies = 1.0 / self.rope_theta**exponents
        if self.rope_type == "linear":
            return frequencies / self.factor
        if self.rope_type == "llama3":
            return self._llama3(frequencies)
        if self.rope_type == "yarn":
            return self._yarn(frequencies, head_dim)
        if self.frequency_factors is not None:
            return frequencies / torch.tensor(self.frequency_factors, device=device)
        return frequencies

    def _llama3(self, frequencies: Tensor) -> Tensor:
        assert self.original_max_position_embeddings is not None
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)  # within the original context
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = kept.clamp(0, 1)
        return kept * frequencies + (1 - kept) * frequencies / self.factor

    def _yarn(self, frequencies: Tensor, head_dim: int) -> Tensor:
        assert self.original_max_position_embeddings is not None
        per_turn = self.original_max_position_embeddings / (2 * math.pi)

        def pair_that_turns(turns: float) -> float:
            return head_dim * math.log(per_turn / turns) / (2 * math.log(self.rope_theta))

        first, last = pair_that_turns(self.beta_fast), pair_that_turns(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        if first == last:
            last += 0.001  # no blend: a step
        pairs = torch.arange(head_dim // 2, device=frequencies.device).float()
        scaled = ((pairs - first) / (last - first)).clamp(0, 1)
        return frequencies / self.factor * scaled + frequencies * (1 - scaled)


def rotary_at(config: RopeConfig, positions: Tensor, head_dim: int, dtype: torch.dtype) -> HalfRotary:
    """What BitAttention applies to queries and keys at `positions`, computed once for all layers.

    Args:
        config: the frequencies.
        positions: integer [length], or [batch, length].
        head_dim: even.
        dtype: of the queries and keys.
    """
    angles = positions.unsqueeze(-1).float() * config.frequencies(head_dim, positions.device)
    cos, sin = angles.cos() * config.attention_scale, angles.sin() * config.attention_scale
    cos = torch.cat([cos, cos], dim=-1).to(dtype)
    sin = torch.cat([-sin, sin], dim=-1).to(dtype)
    if positions.dim() == 2:
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # the same for all heads
    return HalfRotary(cos, sin)
