"""A short run of every example: it learns what a broken straight-through estimator could not, deploys and reports."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from typer.testing import CliRunner, Result

from bitlayers import BitLayer
from bitmodels import AutoBitModel
from char_lm import CharLM, CharLMConfig
from cifar10_cnn import Cnn, CnnConfig
from common.twin import dense_twin

ROOT = Path(__file__).parent.parent.parent


class Short(NamedTuple):
    """Tiny settings, and what ternary models reach with them."""

    options: str
    loss: float  # the last training losses as a share of the first ones
    accuracy: float  # on validation data


PROGRAMS = {  # in the comments: both figures as they come; where masters get no gradients; accuracy by chance
    "xor_mlp": Short("--steps 400", 0.3, 0.93),  # 0.08, 98 %; 0.60, 56 %; 50 %
    "mnist_mlp": Short("--epochs 6 --hidden 64 --seeds 2", 0.4, 0.75),  # 0.18, 86 %; 0.83, 13 %; 10 %
    "cifar10_cnn": Short("--steps 100 --width 4 --batch-size 32", 0.73, 0.4),  # 0.64, 45 %; 0.83, 35 %; 17 %
    "char_lm": Short("--steps 60 --width 32 --layers 2 --context 32", 0.63, 0.27),  # 0.58, 29 %; 0.69, 23 %; 15 %
    "convert_pretrained": Short("--steps 150 --dense-steps 40 --width 3", 0.8, 0.7),  # 0.69, 82 %; 0.95, 35 %; 10 %
}


def run(program: str, *options: str) -> Result:
    return CliRunner().invoke(importlib.import_module(program).app, options)


def results_of(program: str, out: Path, *options: str) -> dict[str, Any]:
    result = run(program, *options, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "deployed logits equal eval logits bit for bit" in result.output
    return json.loads((out / "results.json").read_text())


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_learns_deploys_and_reports(program: str, tmp_path: Path) -> None:
    options, loss, accuracy = PROGRAMS[program]
    results = results_of(program, tmp_path, "--compare", "--seed", "3", *options.split())
    rows, curves = results["rows"], results["curves"]
    assert curves["ternary"]["training"][-1] < loss * curves["ternary"]["training"][0]
    assert min(rows["ternary"]["accuracies"]) > accuracy
    assert curves["fp32"]["steps"] == curves["ternary"]["steps"]
    for measure in ("losses", "accuracies"):
        assert rows["deployed"][measure] == rows["ternary"][measure]
    assert rows["deployed"]["weight_bytes"] < rows["ternary"]["weight_bytes"] == rows["fp32"]["weight_bytes"]
    assert (tmp_path / f"{program}.png").read_bytes().startswith(b"\x89PNG")
    if program != "convert_pretrained":  # which saves a plain state dict
        assert AutoBitModel.from_pretrained(tmp_path).is_deployed


def test_the_seed_decides(tmp_path: Path) -> None:
    results = [results_of("xor_mlp", tmp_path, "--steps", "20", "--seed", seed) for seed in ("1", "1", "2")]
    first, second, other = (result["curves"]["ternary"] for result in results)
    assert first == second != other


@pytest.mark.parametrize("model", [Cnn(CnnConfig(width=4)), CharLM(CharLMConfig(width=32, layers=2))])
def test_the_dense_twin_begins_with_the_same_weights(model: torch.nn.Module) -> None:
    twin = dense_twin(model)
    assert not any(isinstance(module, BitLayer) for module in twin.modules())
    for (name, parameter), (its_name, its_parameter) in zip(
        model.named_parameters(), twin.named_parameters(), strict=True
    ):
        assert name == its_name
        assert torch.equal(parameter, its_parameter)
        assert parameter is not its_parameter


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        ("xor_mlp", ["--steps", "0"], "--steps"),
        ("mnist_mlp", ["--epochs", "no"], "--epochs"),
        ("mnist_mlp", ["--data", "{folder}"], "{folder}/train-images-idx3-ubyte cannot be read"),
        ("cifar10_cnn", ["--data", "{folder}"], "{folder}/data_batch_1.bin cannot be read"),
        ("char_lm", ["--text", "{folder}"], "{folder} cannot be read (Is a directory), expected a text file in UTF-8"),
        ("char_lm", ["--width", "33"], "33 is not a multiple of 32"),
        ("convert_pretrained", ["--out", "{folder}/file"], "file"),
        ("xor_mlp", ["--device", "gpu"], "gpu"),
        ("char_lm", ["--device", "cuda:99"], "cuda:99"),
    ],
)
def test_what_is_wrong_is_said_with_exit_code_2(program: str, options: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(program, *(option.format(folder=tmp_path) for option in options))
    assert result.exit_code == 2
    assert message.format(folder=tmp_path) in result.stderr
    assert "Traceback" not in result.stderr


def test_a_program_runs_by_its_path() -> None:
    command = [sys.executable, "examples/mnist_mlp.py", "--data", "nowhere"]
    result = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: nowhere/train-images-idx3-ubyte cannot be read"), result.stderr
    assert "Traceback" not in result.stderr
