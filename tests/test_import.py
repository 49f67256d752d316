"""Importing is lean: few modules, no device touched, no extension needed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(code: str, directory: Path = ROOT) -> subprocess.CompletedProcess[str]:
    paths = [str(directory), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


def test_core_imports_torch_and_pydantic_alone() -> None:
    code = (
        "import torch, pydantic, sys; before = set(sys.modules); import bitcore.kernels, bitcore.ops\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'numpy', 'safetensors', 'triton', 'transformers', 'sklearn', 'rich', 'matplotlib'}))\n"
        "print(torch.cuda.is_initialized())"
    )
    result = run(code)
    assert result.stdout.split() == ["[]", "False"], result.stdout + result.stderr


def test_models_import_no_optional_package() -> None:
    optional = "{'numpy', 'triton', 'transformers', 'huggingface_hub', 'gguf', 'peft', 'vllm'}"
    code = (
        "import torch, sys; before = set(sys.modules); import bitmodels.plugins\n"
        f"print(sorted({{name.split('.')[0] for name in set(sys.modules) - before}} & {optional}))"
    )
    result = run(code)
    assert result.stdout.split() == ["[]"], result.stdout + result.stderr


def test_without_the_extension_everything_works_and_one_warning_says_why(tmp_path: Path) -> None:
    for package in ("bitcore", "bitlayers", "bitmodels"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("*.so", "build_report.json"))
    code = (
        "import torch, bitcore; from bitlayers import BitLinear; from bitmodels import AutoBitModel\n"
        "from bitmodels.mlp import BitMLPConfig\n"
        f"assert bitcore.__file__.startswith({str(tmp_path)!r}), bitcore.__file__\n"
        "model = AutoBitModel.from_config(BitMLPConfig()).deploy()\n"
        "print(model(torch.randn(2, 256)).shape, BitLinear(8, 8).deploy().kernel.name)"
    )
    result = run(code, tmp_path)
    assert result.stdout.split() == ["torch.Size([2,", "10])", "reference"], result.stderr
    assert result.stderr.count("ExtensionWarning") == 1
    assert "not built: build_extensions.py has not run" in result.stderr


def test_command_line_prints_what_this_machine_has() -> None:
    result = subprocess.run([sys.executable, "-m", "bitcore"], capture_output=True, text=True, check=True)
    for word in (
        "bitlab:",
        "torch",
        "cpu:",
        "gpus:",
        "cpu kernels:",
        "bitnet_b158",
        "weight_only",
        "int8_per_tensor",
        "int4(128)",
        "chosen",
    ):
        assert word in result.stdout
