"""Models that are made once, and runners of the command line."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from small_models import Models, Run, byte_tokenizer, small_transformer
from typer.testing import CliRunner, Result

from bitcli.app import app
from bitmodels import export_gguf, export_hf
from bitmodels.mlp import BitMLPConfig, BitMLPModel


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
