"""`bitlab export`: files for transformers and llama.cpp, whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import Models, Run, small_transformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from bitmodels import AutoBitModel
from bitmodels.formats import open_checkpoint

TOKENS = torch.arange(12).reshape(1, 12)


@pytest.mark.parametrize("source", ["trained", "gguf"])
def test_hugging_face(source: str, made: Models, run_json: Callable[..., Any], tmp_path: Path) -> None:
    new = tmp_path / "new"
    answer = run_json("export", getattr(made, source), new, "--format", "hf")
    assert answer == {
        "model": str(getattr(made, source)),
        "dst": str(new),
        "format": "hf",
        "nbytes": sum(file.stat().st_size for file in new.iterdir()),
        "tokenizer": True,
    }
    assert torch.equal(AutoBitModel.from_pretrained(new)(TOKENS), made.model(TOKENS))
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(new, dtype=torch.float32)(TOKENS).logits
    torch.testing.assert_close(theirs, made.model(TOKENS), rtol=0.05, atol=0.05)
    assert AutoTokenizer.from_pretrained(new).decode(AutoTokenizer.from_pretrained(new).encode("héllo")) == "héllo"


@pytest.mark.parametrize(("type", "expected"), [(None, "TQ2_0"), *((name, name) for name in ("TQ1_0", "Q2_0", "I2_S"))])
def test_gguf(type: str | None, expected: str, made: Models, run: Run, tmp_path: Path) -> None:
    new = tmp_path / "new.gguf"
    options = ["--tokenizer-pre", "llama-bpe", *(["--type", type] if type else [])]
    result = run("export", made.hf, new, "--format", "gguf", *options)
    assert (result.exit_code, result.stderr) == (0, "")
    checkpoint = open_checkpoint(new)
    assert checkpoint.entries["blk.0.attn_q.weight"].encoding == expected
    assert checkpoint.config["tokenizer.ggml.pre"] == "llama-bpe"
    assert torch.equal(AutoBitModel.from_pretrained(new)(TOKENS), made.model(TOKENS))
    assert [path.name for path in tmp_path.iterdir()] == ["new.gguf"]


def test_the_tokenizer_can_be_another_or_left_out(made: Models, run: Run, tmp_path: Path) -> None:
    for name, options, tokenizer in (
        ("a", ["--tokenizer", made.trained, "--tokenizer-pre", "gpt-2"], "gpt2"),
        ("b", ["--no-tokenizer"], "none"),
        ("c", [], "none"),
    ):
        result = run("export", made.deployed, tmp_path / name, "--format", "gguf", *options)
        assert result.exit_code == 0, result.stderr
        assert ("has no tokenizer, nor has" in result.stderr) == (options == [])
        assert open_checkpoint(tmp_path / name).config["tokenizer.ggml.model"] == tokenizer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "gguf"], "needs --tokenizer-pre NAME; or say --no-tokenizer"),
        (["--format", "hf", "--type", "TQ2_0"], "--type and --tokenizer-pre are for --format gguf"),
        (["--format", "gguf", "--type", "Q4_K"], "'Q4_K' is not one of"),
        (["--format", "onnx"], "'onnx' is not one of"),
        ([], "Missing option '--format'"),
        (["--format", "hf", "--tokenizer", "MLP"], "expected a folder with tokenizer.json"),
    ],
)
def test_wrong_options(options: list[str], message: str, made: Models, run: Run, tmp_path: Path) -> None:
    given = [str(made.mlp) if option == "MLP" else option for option in options]
    result = run("export", made.hf, tmp_path / "new", *given)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_what_a_format_cannot_hold(made: Models, run: Run, tmp_path: Path) -> None:
    small_transformer(hidden_size=192, intermediate_size=320).deploy().save_pretrained(tmp_path / "small")
    for source, format, message in (
        (tmp_path / "small", "gguf", "expected a multiple of 256 for TQ2_0; it fits Q2_0, bitnet"),
        (made.mlp, "gguf", "model is a BitMLPModel, expected a BitTransformerModel"),
        (made.mlp, "hf", "model is a BitMLPModel, expected a BitTransformerModel"),
    ):
        result = run("export", source, tmp_path / "new", "--format", format, "--json")
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_what_exists_is_refused_and_replaced_on_demand(made: Models, run: Run, tmp_path: Path) -> None:
    file, folder = tmp_path / "file.gguf", tmp_path / "folder"
    file.write_text("mine")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"mine": True}))
    for path, options in ((file, ["--format", "gguf", "--no-tokenizer"]), (folder, ["--format", "hf"])):
        result = run("export", made.hf, path, *options)
        assert result.exit_code == 2
        assert "which exists, expected a new path, or --overwrite" in result.stderr
        assert "mine" in (path if path.is_file() else path / "config.json").read_text()
        assert run("export", made.hf, path, *options, "--overwrite").exit_code == 0
        assert torch.equal(AutoBitModel.from_pretrained(path)(TOKENS), made.model(TOKENS))
