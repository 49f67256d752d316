"""The session of docs/command_line.md runs."""

import re
import shlex
from pathlib import Path

import pytest
from small_models import Run

from bitcli.app import app
from bitcli.measurement import competitors, layer_bench

PAGE = (Path(__file__).parent.parent.parent / "docs" / "command_line.md").read_text()


def test_the_session_runs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(competitors, "COLD_BYTES", 1)
    monkeypatch.setattr(layer_bench, "ROUNDS", 1)
    monkeypatch.setattr(layer_bench, "read_bandwidth", lambda: 1e9)
    monkeypatch.setattr(layer_bench, "fp32_peak", lambda: 1e9)
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    exec(compile(program, "command_line.md", "exec"), {})
    commands = re.findall(r"^\$ bitlab (.*)\n", PAGE, re.MULTILINE)
    assert len(commands) == 8
    for command in commands:
        arguments = ["--shape", "64x64"] if command.startswith("bench") else []
        result = run(*shlex.split(command), *arguments)
        assert result.exit_code == 0, result.stderr


def test_every_command_has_its_row() -> None:
    rows = re.findall(r"^\| `bitlab (\w+)", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(command.callback.__name__ for command in app.registered_commands if command.callback)
