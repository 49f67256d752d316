"""`bitlab info` says what `python -m bitcore` says."""

from collections.abc import Callable
from typing import Any

import pytest
from small_models import Run

from bitcore import BitQuantConfig
from bitcore.kernels import KernelRegistry
from bitcore.machine_report import machine_report


def test_the_tables(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    text = run("info").stdout
    for name, fact in machine_report().facts.items():
        assert f"{name:<12}  {fact}" in text
    for name in KernelRegistry._kernels:
        assert f" {name} " in text
    assert "chosen" in text
    assert "bitnet_b158, base3" in text


def test_json_has_what_the_registry_says(run_json: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITLAB_KERNEL", "reference")
    answer = run_json("info")
    cpu = answer["devices"][0]
    assert cpu["device"] == "cpu"
    assert set(cpu["kernel_of"]["bitnet_b158"].values()) == {"reference"}
    rows = KernelRegistry.explain(BitQuantConfig()).splitlines()[1:]
    assert [row.split()[0] for row in rows] == [kernel["kernel"] for kernel in cpu["kernels"]]
    assert [kernel["kernel"] for kernel in cpu["kernels"] if kernel["verdict"].startswith("chosen")] == ["reference"]
