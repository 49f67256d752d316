"""The shape of the tree: which package imports which, what C++ files may contain, how long a file may be."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import build_extensions

ROOT = Path(__file__).parent.parent
TRITON_KERNELS = ROOT / "bitcore" / "kernels" / "triton"
PLUGINS = ROOT / "bitmodels" / "plugins"
MAY_IMPORT = {  # package -> what it may import beside the standard library and itself
    "bitcore": {"torch", "pydantic", "typing_extensions"},
    "bitlayers": {"torch", "typing_extensions", "bitcore"},
    "bitmodels": {"torch", "pydantic", "safetensors", "typing_extensions", "bitcore", "bitlayers"},
    "bitcli": {"torch", "rich", "typer", "bitcore", "bitlayers", "bitmodels"},
}


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        allowed = MAY_IMPORT[package] | {package} | set(sys.stdlib_module_names)
        if path.parent == TRITON_KERNELS and path.name != "__init__.py":  # imported at the first call
            allowed.add("triton")
        if path.parent.parent == PLUGINS:  # imported by whoever uses that library
            allowed.add(path.parent.name)
        foreign = {name for name in imports_of(path) if name.split(".")[0] not in allowed}
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_import_circles(package: str) -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / package).rglob("*.py")
    }
    edges = {
        name: {
            found for found in imports_of(path) if found in modules and found != name and not path.stem == "__init__"
        }
        for name, path in modules.items()
    }

    def reach(name: str, on_the_way: tuple[str, ...]) -> None:
        assert name not in on_the_way, f"circle: {' -> '.join((*on_the_way, name))}"
        for following in edges[name]:
            reach(following, (*on_the_way, name))

    for name in modules:
        reach(name, ())


@pytest.mark.parametrize("folder", ["cpu", "cuda"])
def test_kernels_know_no_torch(folder: str) -> None:
    for path in (ROOT / "bitcore" / "csrc" / folder).iterdir():
        assert "torch/" not in path.read_text().replace("Torch-free", ""), path.name


def test_files_are_short() -> None:
    for pattern in ("bit*/**/*.py", "bitcore/csrc/**/*.cpp", "bitcore/csrc/**/*.cu", "bitcore/csrc/**/*.*h", "*.py"):
        for path in ROOT.glob(pattern):
            assert len(path.read_text().splitlines()) <= 400, path


@pytest.mark.parametrize("name", build_extensions.ISA_FLAGS)
def test_isa_objects_export_their_table_alone(name: str) -> None:
    """Code with ISA flags that another object could link to would run on CPUs without that ISA."""
    built = build_extensions.OBJECTS / f"kernel_{name}.o"
    if not built.exists() or shutil.which("nm") is None:
        pytest.skip("no object file of this build here, or no nm")
    listing = subprocess.run(
        ["nm", "--defined-only", "--extern-only", "-C", str(built)], capture_output=True, text=True, check=True
    )
    symbols = [line.split(maxsplit=2)[2] for line in listing.stdout.splitlines()]
    assert len(symbols) == 1, symbols
    assert symbols[0].startswith("bitlab::cpu::k")
    everything = subprocess.run(["nm", "-C", str(built)], capture_output=True, text=True, check=True).stdout
    assert "_GLOBAL__sub_I" not in everything, "a static constructor would run on every machine"
