"""Every Python block of the README and the docs runs, page by page."""

import re
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


def test_torch_is_left_as_it_was() -> None:
    assert torch.is_grad_enabled()
