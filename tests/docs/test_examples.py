"""Every Python block of the README and the docs runs, page by page, and so do the example programs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitcore.kernels import KernelRegistry

ROOT = Path(__file__).parent.parent.parent
PAGES = [
    page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if "```python" in page.read_text()
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(KernelRegistry, "_kernels", dict(KernelRegistry._kernels))
    namespace: dict[str, object] = {"__name__": f"page_{page.stem}"}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)
    KernelRegistry._forget_decisions()


def test_digits_mlp(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "examples/digits_mlp.py",
        "--seeds",
        "1",
        "--epochs",
        "6",
        "--hidden",
        "64",
        "--out",
        str(tmp_path),
    ]
    result = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "deployed logits equal eval logits bit for bit" in result.stdout
    assert (tmp_path / "digits_mlp.png").read_bytes().startswith(b"\x89PNG")
    row = next(line for line in result.stdout.splitlines() if "│ deployed" in line)
    accuracy = float(re.search(r"([\d.]+)%", row).group(1))
    assert accuracy > 85  # 10 is chance


def test_digits_mlp_refuses_nonsense() -> None:
    result = subprocess.run(
        [sys.executable, "examples/digits_mlp.py", "--epochs", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "--epochs" in result.stderr
    assert "Traceback" not in result.stderr


def test_torch_is_left_as_it_was() -> None:
    assert torch.is_grad_enabled()
