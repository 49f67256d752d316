"""Small models in every format."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import Result

from bitmodels.transformer import BitTransformerConfig, BitTransformerModel

Run = Callable[..., Result]
CONTEXT = 32


@dataclass(frozen=True)
class Models:
    """Folders and files that no test may change."""

    trained: Path  # BitLab's own, with master weights and a tokenizer
    deployed: Path  # BitLab's own, without a tokenizer
    mlp: Path
    hf: Path
    gguf: Path
    model: BitTransformerModel  # deployed: what they all hold


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, one for "he", and one for the end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, "he"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("h", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    tokenizer.chat_template = "<{{ messages[0].content }}>"
    return tokenizer


def small_transformer(**changes: Any) -> BitTransformerModel:
    """One layer; its scales are float16 numbers, which a GGUF file holds without rounding."""
    sizes = {"vocab_size": 258, "hidden_size": 256, "intermediate_size": 256, "num_layers": 1, "num_heads": 4}
    model = BitTransformerModel(BitTransformerConfig(**{**sizes, "max_length": CONTEXT, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and name.endswith("proj.weight"):
                parameter.copy_(torch.where(parameter < 0, -0.0625, 0.0625))
    return model
