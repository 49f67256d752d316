"""Sampling: the next token of each row of logits."""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from bitcore.exceptions import ArgumentError, ConfigError


class SamplingConfig(BaseModel):
    """How tokens are drawn: temperature first, then the top_k likeliest, then of these the top_p.

    top_p (nucleus sampling, arXiv 1904.09751) keeps the fewest of the likeliest tokens that have this probability
    together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)

    def filtered(self, logits: Tensor) -> Tensor:
        """The logits [batch, vocabulary] of the distribution to draw from, float32; -inf for what is left out."""
        logits = logits.float()
        # The largest becomes 0, which stays finite however small the temperature is.
        logits = (logits - logits.amax(-1, keepdim=True)) / max(self.temperature, torch.finfo(torch.float32).tiny)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            lowest = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < lowest, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            values, order = logits.sort(descending=True)
            probabilities = values.softmax(-1)
            beyond = probabilities.cumsum(-1) - probabilities >= self.top_p  # never the first one
            logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)
        return logits

    def sample(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Tokens [batch] drawn for logits [batch, vocabulary]."""
        probabilities = self.filtered(logits).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


def sampling_config(
    do_sample: bool, temperature: float | None, top_k: int | None, top_p: float | None
) -> SamplingConfig | None:
    """How to draw tokens, or None for the likeliest.

    Raises:
        ArgumentError: a value is out of range, or given without do_sample, which would not look at it.
    """
    given = {
        name: value
        for name, value in (("temperature", temperature), ("top_k", top_k), ("top_p", top_p))
        if value is not None
    }
    if not do_sample:
        if given:
            raise ArgumentError(", ".join(given), f"given with do_sample=False ({given})", "do_sample=True")
        return None
    try:
        return SamplingConfig.model_validate(given)
    except ConfigError as error:
        first = error.errors()[0]
        raise ArgumentError(str(first["loc"][0]), first["input"], first["msg"]) from error
