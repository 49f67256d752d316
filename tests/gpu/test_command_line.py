"""The command line on a GPU."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer", reason="the command line needs typer")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

from typer.testing import CliRunner  # noqa: E402

from bitcli.app import app  # noqa: E402
from bitcli.measurement import competitors, layer_bench  # noqa: E402
from bitmodels.transformer import BitTransformerConfig, BitTransformerModel  # noqa: E402


def answer(*arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(app, [*arguments, "--device", "cuda", "--json", "--debug"])
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(competitors, "COLD_BYTES", 1_000_000)
    monkeypatch.setattr(layer_bench, "copy_bandwidth", lambda nbytes: 1e12)
    monkeypatch.setattr(layer_bench, "bf16_peak", lambda: 1e14)
    for options in ((), ("--hot", "--rows", "64")):
        results = answer("bench", "--shape", "512x512", *options)["results"]
        assert isinstance(results, list)
        names = [row["name"] for row in results]
        assert names[-2:] == ["F.linear bfloat16", "F.linear float32"]
        assert len(names) > 2
        assert "reference" not in names
        assert all(row["seconds"] > 0 for row in results)


def test_verify_and_generate(tmp_path: Path) -> None:
    config = BitTransformerConfig(vocab_size=64, hidden_size=256, intermediate_size=256, num_layers=1, num_heads=4)
    BitTransformerModel(config).deploy().save_pretrained(tmp_path)
    verified = answer("verify", str(tmp_path))
    assert verified["kernels"]
    assert verified["differences"] == []
    generated = answer("generate", str(tmp_path), "-p", "1 2 3", "--token-ids", "-n", "5", "--seed", "1")
    assert isinstance(generated["token_ids"], list)
    assert len(generated["token_ids"]) == 5
