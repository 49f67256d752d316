"""Building with, without and with a broken compiler, in a copy of the sources."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for script in ROOT.glob("build_*.py"):
        shutil.copy(script, tmp_path)
    shutil.copytree(ROOT / "bitcore" / "csrc", tmp_path / "bitcore" / "csrc")
    return tmp_path


def build(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("CXX", "BUILD_CPP_EXTENSIONS")}
    command = [sys.executable, "build_extensions.py", *arguments]
    return subprocess.run(command, cwd=tree, env=clean | environment, capture_output=True, text=True, check=False)


def report(tree: Path) -> dict[str, object]:
    return json.loads((tree / "bitcore/kernels/bindings/build_report.json").read_text())


def test_turned_off(tree: Path) -> None:
    result = build(tree, BUILD_CPP_EXTENSIONS="0")
    assert "the PyTorch reference kernel will serve: BUILD_CPP_EXTENSIONS=0 turned the build off" in result.stdout
    assert "BUILD_CPP_EXTENSIONS=0" in str(report(tree)["failure"])


def test_no_compiler(tree: Path) -> None:
    result = build(tree, CXX="no-such-compiler")
    assert result.returncode == 1
    assert "no C++ compiler was found (looked for no-such-compiler)" in result.stdout
    assert "install g++" in result.stdout


def test_a_failing_compiler_is_an_error_only_where_asked(tree: Path) -> None:
    (tree / "bitcore/csrc/cpu/kernel_portable.cpp").write_text("this is not C++\n")
    result = build(tree)
    assert "compiled kernels were not built, the PyTorch reference kernel will serve" in result.stdout
    assert "this is not C++" in str(report(tree)["failure"])  # the compiler's own message
    result = build(tree, BUILD_CPP_EXTENSIONS="1")
    assert result.returncode == 1
    assert "this is not C++" in result.stderr


def test_a_wheel_takes_nothing_of_an_earlier_build(tree: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copy(ROOT / "bitcore" / "version.py", tree / "bitcore")
    (tree / "bitcore/__init__.py").touch()
    (tree / "bitcore/kernels/bindings").mkdir(parents=True)
    (tree / "bitcore/kernels/bindings/bitlab_cpu.so").touch()
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", "wheel"]
    environment = {**os.environ, "CXX": "no-such-compiler", "BUILD_CPP_EXTENSIONS": ""}
    result = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    built = [path.name for path in (tree / "wheel/bitcore").rglob("*") if path.suffix in (".so", ".json")]
    assert built == ["build_report.json"]


def test_builds_again_only_what_changed_and_cleans(tree: Path) -> None:
    first = build(tree)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "portable" in report(tree)["kernels"]  # type: ignore[operator]
    assert report(tree)["failure"] is None
    assert "compile" not in build(tree).stdout
    source = tree / "bitcore/csrc/cpu/cpu_features.cpp"
    source.write_text(source.read_text() + "\n")
    again = build(tree).stdout
    assert "compile cpu_features.o" in again
    assert "kernel_portable.o" not in again
    build(tree, "--clean")
    assert not list((tree / "bitcore/kernels/bindings").glob("*.so"))
