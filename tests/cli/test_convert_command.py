"""`bitlab convert`: every format to BitLab's own, whole or not at all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import Models, Run
from transformers import AutoTokenizer

from bitcore import BitQuantConfig
from bitlayers import BitLinear
from bitmodels import AutoBitModel
from bitmodels.transformer import BitTransformerModel

TOKENS = torch.arange(12).reshape(1, 12)
RunJson = Callable[..., Any]


@pytest.mark.parametrize("name", ["trained", "deployed", "hf", "gguf"])
def test_every_format_gives_the_same_logits(name: str, made: Models, run: Run, tmp_path: Path) -> None:
    result = run("convert", getattr(made, name), tmp_path / "new")
    assert result.exit_code == 0, result.stderr
    model = AutoBitModel.from_pretrained(tmp_path / "new")
    assert model.is_deployed
    assert torch.equal(model(TOKENS), made.model(TOKENS))
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    if name == "deployed":
        assert "has no tokenizer" in result.stderr
    else:
        assert result.stderr == ""
        assert AutoTokenizer.from_pretrained(tmp_path / "new").encode("Hi!") == AutoTokenizer.from_pretrained(
            made.trained
        ).encode("Hi!")


def test_options(made: Models, run_json: RunJson, tmp_path: Path) -> None:
    new = tmp_path / "new"
    options = ("--head-dtype", "int8", "--storage-format", "base3", "--activations", "float32", "--dtype", "bfloat16")
    answer = run_json("convert", made.hf, new, *options)
    assert (answer["model_type"], answer["deployed"], answer["dst"]) == ("transformer", True, str(new))
    assert answer["files"] == {file.name: file.stat().st_size for file in sorted(new.iterdir())}
    model = AutoBitModel.from_pretrained(new)
    assert isinstance(model, BitTransformerModel)
    assert model.config.head_dtype == "int8"
    assert model.quant_config == BitQuantConfig(storage_format="base3", activation_dtype="float32")
    assert model.model.norm.weight.dtype == torch.bfloat16


def test_only_what_is_asked_changes(made: Models, run_json: RunJson, tmp_path: Path) -> None:
    """Ternary floats without a quantization have float activations, also when another storage format is asked for."""
    floats = tmp_path / "floats"
    shutil.copytree(made.trained, floats)
    content = json.loads((made.hf / "config.json").read_text())
    del content["quantization_config"]
    (floats / "config.json").write_text(json.dumps(content))
    run_json("convert", floats, tmp_path / "new", "--storage-format", "base3")
    expected = BitQuantConfig(storage_format="base3", activation_dtype="float32")
    assert AutoBitModel.from_pretrained(tmp_path / "new").quant_config == expected


def test_our_own_models_are_packed_anew(made: Models, run: Run, tmp_path: Path) -> None:
    sources = {"deployed": made.deployed, "trained": made.trained}
    for name, source in sources.items():
        result = run("convert", source, tmp_path / name, "--no-tokenizer", "--storage-format", "base3")
        assert result.exit_code == 0, result.stderr
        model = AutoBitModel.from_pretrained(tmp_path / name)
        assert model.quant_config.storage_format == "base3"
        assert torch.equal(model(TOKENS), AutoBitModel.from_pretrained(made.deployed)(TOKENS))


def test_the_head_of_our_own_models_is_converted_and_back(made: Models, run: Run, tmp_path: Path) -> None:
    steps = [
        ("int8", made.deployed, []),
        ("int4", tmp_path / "int8", []),
        ("float", tmp_path / "int8", []),
        ("rounded", tmp_path / "int8", ["--head-dtype", "float", "--dtype", "bfloat16"]),
        ("trained", made.trained, ["--head-dtype", "int8"]),
        ("masters", made.trained, ["--head-dtype", "int8", "--keep-masters"]),
    ]
    results = {
        name: run("convert", source, tmp_path / name, "--no-tokenizer", *(options or ["--head-dtype", name]))
        for name, source, options in steps
    }
    assert "expected torch.float32: another would round" in results.pop("rounded").stderr
    assert not (tmp_path / "rounded").exists()
    assert {name: result.stderr for name, result in results.items()} == dict.fromkeys(results, "")
    models = {name: AutoBitModel.from_pretrained(tmp_path / name) for name in results}
    logits = {name: model(TOKENS) for name, model in models.items()}
    for same in ("trained", "masters"):
        assert torch.equal(logits[same], logits["int8"])
    assert [models[name].config.head_dtype for name in ("int8", "int4", "float")] == ["int8", "int4", "float"]
    torch.testing.assert_close(logits["float"], logits["int8"])
    assert not torch.equal(logits["int8"], made.model(TOKENS))
    assert not models["masters"].is_deployed


def test_masters_are_kept_or_quantized_before_they_are_cast(made: Models, run_json: RunJson, tmp_path: Path) -> None:
    assert not run_json("convert", made.trained, tmp_path / "kept", "--keep-masters")["deployed"]
    kept = AutoBitModel.from_pretrained(tmp_path / "kept").train()
    assert torch.equal(kept.eval()(TOKENS), made.model(TOKENS))
    run_json("convert", made.trained, tmp_path / "cast", "--dtype", "bfloat16")
    modules = AutoBitModel.from_pretrained(tmp_path / "cast").modules()
    assert {module.qweight_scale.item() for module in modules if isinstance(module, BitLinear)} == {0.0625}


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("mlp", ["--head-dtype", "int8"], "head_dtype is int8, expected None: a mlp is no language model"),
        ("gguf", ["--keep-masters"], "which cannot be trained"),
        ("deployed", ["--keep-masters"], "which is deployed, expected one with master weights"),
        ("hf", ["--dtype", "int8"], "'--dtype'"),
        ("nothing", [], "no such file or directory"),
    ],
)
def test_what_is_refused_leaves_nothing(
    source: str, options: list[str], message: str, made: Models, run: Run, tmp_path: Path
) -> None:
    result = run("convert", getattr(made, source, "/no/such/model"), tmp_path / "new", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_damaged_checkpoints_leave_nothing(made: Models, run: Run, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(made.hf, damaged)
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(made.gguf.read_bytes()[:5000])
    unknown = tmp_path / "unknown"
    shutil.copytree(made.hf, unknown)
    content = json.loads((unknown / "config.json").read_text()) | {"architectures": ["MambaForCausalLM"]}
    (unknown / "config.json").write_text(json.dumps(content))
    for source, message in ((damaged, "model.safetensors"), (cut, "cut.gguf"), (unknown, "MambaForCausalLM")):
        result = run("convert", source, tmp_path / "new")
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")
        assert message in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.gguf", "damaged", "unknown"]
