"""Models that the transformers plug-in loads, and what the tests ask of them."""

from pathlib import Path
from typing import Any

import torch
from hugging_face_checkpoints import SIZES
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from bitmodels.plugins.transformers import BitLabQuantConfig

PROJECTION = "model.layers.1.mlp.up_proj"


def ids() -> Tensor:
    return torch.randint(SIZES["vocab_size"], (2, 9))


def load(directory: Path, config: BitLabQuantConfig | None = None, **options: Any) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        directory, quantization_config=BitLabQuantConfig() if config is None else config, **options
    )
    return model


@torch.no_grad()
def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    logits: Tensor = model(tokens).logits
    return logits
