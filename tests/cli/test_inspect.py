"""`bitlab inspect`: every format, and files that are none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_models import Models, Run

from bitmodels.formats import CheckpointReport, inspect_checkpoint


@pytest.mark.parametrize("name", ["trained", "deployed", "mlp", "hf", "gguf"])
def test_json_is_the_report(name: str, made: Models, run_json: Callable[..., Any]) -> None:
    path = getattr(made, name)
    answer = run_json("inspect", path)
    report = inspect_checkpoint(path)
    assert answer.pop("nbytes") == report.nbytes
    assert CheckpointReport.model_validate(answer) == report


def test_layers_are_one_line_or_each(made: Models, run: Run) -> None:
    text = run("inspect", made.hf).stdout
    assert "LlamaForCausalLM" in text
    line = next(line for line in text.splitlines() if "self_attn.q_proj" in line)
    assert line.split()[:4] == ["model.layers.*.self_attn.q_proj.weight", "1", "256x256", "bitnet"]
    assert line.rstrip().endswith("per_tensor, 0.0625 to 0.0625")
    assert "model.layers.0.self_attn.q_proj.weight" in run("inspect", made.hf, "--all").stdout
    deployed = run("inspect", made.deployed).stdout
    assert "256x64 bytes" in deployed


def test_what_is_no_checkpoint(made: Models, run: Run, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(made.gguf.read_bytes()[:-100])
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes(b"\xff" * 100)
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "nothing", "nothing cannot be read: "),
        (tmp_path / "empty", "empty has nothing, expected model.safetensors"),
        (cut, "cut.gguf"),
        (damaged, "model.safetensors"),
    ):
        for options in ([], ["--json"]):
            result = run("inspect", path, *options)
            assert result.exit_code == 2
            assert result.stderr.startswith("error: ")
            assert message in result.stderr
            assert result.stdout == ""
