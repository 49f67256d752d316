"""The command line as a whole: a fast start, versions, exit codes, errors as sentences."""

import os
import signal
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest
import torch
import typer
from small_models import Models, Run
from typer.testing import CliRunner

import bitcore
from bitcli.guard import guarded
from bitcore import BitQuantConfig
from bitcore.exceptions import ArgumentError

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).parent.parent.parent
COMMANDS = ("info", "bench", "inspect", "convert", "export", "generate", "verify")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_help_of_every_command_needs_no_torch() -> None:
    code = (
        "import sys, contextlib, io\n"
        "from bitcli.__main__ import main\n"
        f"for command in ({', '.join(map(repr, COMMANDS))}, None):\n"
        "    sys.argv = ['bitlab', *filter(None, [command]), '--help']\n"
        "    text = io.StringIO()\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(text):\n"
        "        main()\n"
        "    assert 'Usage: bitlab' in text.getvalue(), text.getvalue()\n"
        "heavy = {'torch', 'numpy', 'transformers', 'safetensors', 'bitcore', 'bitlayers', 'bitmodels'}\n"
        "print(sorted(heavy & set(sys.modules)), len(sys.modules) < 700)\n"
    )
    result = python("-c", code)
    assert result.stdout.split("\n")[-2] == "[] True", result.stdout + result.stderr


def test_help_lists_every_command(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert [line.split()[1] for line in result.stdout.partition("Commands")[2].splitlines() if line[2:3].isalpha()] == [
        *COMMANDS
    ]


def test_version(run: Run) -> None:
    assert run("--version").stdout.startswith(f"bitlab {bitcore.__version__}, torch {torch.__version__}, Python ")


@pytest.mark.parametrize("missing", [["typer"], ["rich"], ["rich", "typer"]])
def test_without_the_extra_a_sentence_says_how_to_get_it(missing: list[str]) -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import runpy; runpy.run_module('bitcli')"
    result = python("-c", code.replace("run_module('bitcli')", "run_module('bitcli', run_name='__main__')"))
    assert result.returncode == 2
    assert result.stderr == f"error: bitlab needs {' and '.join(missing)}: pip install {' '.join(missing)}\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="reads pyproject.toml with tomllib")
def test_the_entry_point_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, name = project["project"]["scripts"]["bitlab"].split(":")
    assert callable(getattr(import_module(module), name))
    assert "bitcli*" in project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {"rich", "typer"} < {entry.split(">")[0] for entry in project["project"]["optional-dependencies"]["cli"]}


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (ArgumentError("x", 1, "2"), 2, "error: x is 1, expected 2\n"),
        (FileNotFoundError(2, "No such file", "some/file"), 2, "error: some/file: No such file\n"),
        (OSError("disk on fire"), 2, "error: disk on fire\n"),
        (KeyError("x"), 3, "error: KeyError: 'x' (not foreseen: --debug shows where it comes from)\n"),
        (MemoryError("of the machine"), 2, "error: not enough memory: of the machine\n"),
        (torch.OutOfMemoryError("of a GPU"), 2, "error: not enough memory: of a GPU\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (ArgumentError("x", "[bold]", "no markup"), 2, "error: x is [bold], expected no markup\n"),
    ],
)
def test_an_error_is_a_sentence_and_an_exit_code(error: BaseException, exit_code: int, message: str) -> None:
    result = CliRunner().invoke(failing(error), [])
    assert (result.exit_code, result.stdout, result.stderr) == (exit_code, "", message)


@pytest.mark.parametrize("arguments", [["bitcore"], ["bitcli", "info"], ["bitcli", "info", "--json"]])
def test_output_that_nobody_reads_ends_it_quietly(arguments: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)  # as `| head` does once it has its lines
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *arguments]
    result = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(write_end)
    assert (result.returncode, result.stderr) == (141, b"")


def test_more_memory_than_there_is_is_no_error_of_ours() -> None:
    result = CliRunner().invoke(app_of(lambda: torch.empty(2**60)), [])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: not enough memory: ")


def test_a_wrong_config_is_a_sentence() -> None:
    def command() -> None:
        BitQuantConfig(weight_dtype="int3")

    result = CliRunner().invoke(app_of(command), [])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: weight_dtype: Input should be 'ternary', 'int4'")
    assert result.stderr.count("\n") == 1


def test_debug_shows_the_traceback() -> None:
    result = CliRunner().invoke(failing(ArgumentError("x", 1, "2")), ["--debug"])
    assert isinstance(result.exception, ArgumentError)


def test_warnings_are_sentences() -> None:
    def command() -> None:
        warnings.warn("mind the gap", UserWarning, stacklevel=1)

    assert CliRunner().invoke(app_of(command), []).stderr == "warning: mind the gap\n"


def failing(error: BaseException) -> typer.Typer:
    def command() -> None:
        raise error

    return app_of(command)


def app_of(command: object) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(guarded(command))  # type: ignore[arg-type]
    return app


@pytest.mark.parametrize("arguments", [["nothing"], ["bench", "--rows", "0"], ["generate", "x"], ["info", "--threads"]])
def test_wrong_usage_is_2(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage: bitlab" in result.stderr
    assert result.stdout == ""


def test_terminated_while_writing_leaves_nothing(made: Models, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, shutil\n"
        "import bitmodels.formats.safetensors_writer as writer\n"
        f"writer.tracked = lambda *_: os.kill(os.getpid(), signal.{signal.SIGTERM.name})\n"
        f"sys.argv = ['bitlab', 'convert', {str(made.hf)!r}, {str(tmp_path / 'new')!r}]\n"
        "from bitcli.__main__ import main; main()\n"
    )
    assert python("-c", code).returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
