"""Small models in every format, and a runner for the command line."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from bitcli.app import app
from bitmodels import export_gguf, export_hf
from bitmodels.mlp import BitMLPConfig, BitMLPModel
from bitmodels.transformer import BitTransformerConfig, BitTransformerModel

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


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    found = Models(
        *(folder / name for name in ("trained", "deployed", "mlp", "hf", "model.gguf")), model=small_transformer()
    )
    tokenizer = byte_tokenizer()
    found.model.save_pretrained(found.trained)
    tokenizer.save_pretrained(found.trained)
    found.model.deploy().save_pretrained(found.deployed)
    export_hf(found.model, found.hf, tokenizer)
    export_gguf(found.model, found.gguf, "TQ2_0", tokenizer, "llama-bpe")
    BitMLPModel(BitMLPConfig(in_channels=16, hidden_dim=8, out_channels=4)).deploy().save_pretrained(found.mlp)
    return found


def small_transformer(**changes: Any) -> BitTransformerModel:
    """One layer; its scales are float16 numbers, which a GGUF file holds without rounding."""
    sizes = {"vocab_size": 258, "hidden_size": 256, "intermediate_size": 256, "num_layers": 1, "num_heads": 4}
    model = BitTransformerModel(BitTransformerConfig(**{**sizes, "max_length": CONTEXT, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and name.endswith("proj.weight"):
                parameter.copy_(torch.where(parameter < 0, -0.0625, 0.0625))
    return model


Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Runs `bitlab` with arguments, in this process. `input` is its stdin."""

    def run(*arguments: object, input: str | None = None) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=input, prog_name="bitlab")

    return run


@pytest.fixture
def run_json(run: Run) -> Callable[..., Any]:
    """Runs `bitlab ... --json`, which must succeed, and reads what is on stdout."""

    def run_json(*arguments: object, input: str | None = None) -> Any:
        result = run(*arguments, "--json", "--debug", input=input)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return run_json
