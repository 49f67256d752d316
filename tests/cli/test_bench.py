"""`bitlab bench` measures what it says it measures. Nothing here looks at how long something takes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import Run

from bitcli.measurement import competitors, layer_bench
from bitcli.measurement.competitors import dense_competitors, kernel_competitors
from bitcli.measurement.timing import median_and_spread, median_seconds, time_in_turns
from bitcore import BitQuantConfig, KernelNotFoundError
from bitcore.kernels import KernelRegistry
from bitcore.quantizers import dequantize, ternary_quantize


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(competitors, "COLD_BYTES", 100_000)
    monkeypatch.setattr(layer_bench, "ROUNDS", 2)
    monkeypatch.setattr(layer_bench, "read_bandwidth", lambda: 1e9)
    monkeypatch.setattr(layer_bench, "fp32_peak", lambda: 2e9)


def kernels_here() -> list[str]:
    here = KernelRegistry.list_available_kernels()
    return [name for name in here if KernelRegistry._kernels[name].device_types != {"cuda"}]


def test_json(run_json: Callable[..., Any]) -> None:
    answer = run_json("bench", "--shape", "48x64", "--rows", 3)
    asked = {"shape": [48, 64], "rows": 3, "dtype": "float32", "weights": "2bit", "activations": "int8"}
    assert asked.items() <= answer.items()
    assert answer["limits"] == {"read_bytes_per_s": 1e9, "fp32_ops_per_s": 2e9}
    results = {row["name"]: row for row in answer["results"]}
    assert list(results) == [*kernels_here(), "F.linear float32", "F.linear bfloat16", "dynamic int8"]
    assert results["reference"]["weight_bytes"] == 48 * 64 // 4
    assert results["F.linear bfloat16"]["weight_bytes"] == 48 * 64 * 2
    for row in results.values():
        assert row["ops_per_s"] == pytest.approx(2 * 3 * 48 * 64 / row["seconds"])
        assert row["bytes_per_s"] == pytest.approx(row["weight_bytes"] / row["seconds"])
        assert row["weights_from"] == "memory"


@pytest.mark.parametrize(
    ("options", "weight_bytes"),
    [
        (["--weights", "base3"], 16 * 32),
        (["--weights", "int4", "--activations", "float32"], 16 * 80),
        (["--activations", "float32", "--dtype", "bfloat16"], 16 * 40),
        (["--hot"], 16 * 40),
    ],
)
def test_options(options: list[str], weight_bytes: int, run: Run, run_json: Callable[..., Any]) -> None:
    arguments = ("bench", "--shape", "16x160", "--kernel", "reference", "--threads", 1, *options)
    answer = run_json(*arguments)
    first = answer["results"][0]
    assert (first["name"], first["weight_bytes"]) == ("reference", weight_bytes)
    assert first["weights_from"] == ("cache" if "--hot" in options else "memory")
    text = run(*arguments).stdout
    for word in ("reference", "F.linear float32", "limit: reading memory", "1.00x", answer["machine"]):
        assert word in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "4096"], "expected out_features x in_features"),
        (["--shape", "0x64"], "expected out_features x in_features"),
        (["--kernel", "avx51"], "no kernel is named 'avx51'"),
        (["--device", "cuda:99"], "--device is cuda:99"),
        (["--weights", "3bit"], "'3bit' is not one of"),
        (["--threads", "0"], "--threads"),
    ],
)
def test_wrong_options(options: list[str], message: str, run: Run) -> None:
    result = run("bench", "--shape", "8x8", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_competitors_compute_the_layer_on_copies_of_the_weight() -> None:
    x, weight = torch.randn(2, 64), torch.randn(16, 64)
    for competitor in dense_competitors(x, weight, [torch.float32, torch.bfloat16], hot=False):
        assert len(competitor.calls) == competitors.COLD_BYTES // competitor.weight_bytes + 1
        expected = x @ weight.T
        for call in (competitor.calls[0], competitor.calls[-1]):
            assert (call().float() - expected).norm() < 0.05 * expected.norm()
    ternary, scale = ternary_quantize(weight)
    for competitor in kernel_competitors(x, weight, BitQuantConfig(), hot=True):
        expected = x @ dequantize(ternary, scale).T
        assert (competitor.calls[0]() - expected).norm() < 0.05 * expected.norm()
        assert len(competitor.calls) == 1
    with pytest.raises(KernelNotFoundError, match="only kernel 'cuda' was asked"):
        kernel_competitors(x, weight, BitQuantConfig(), hot=True, kernels=["cuda"])


def test_competitors_take_turns_and_go_round_their_copies() -> None:
    seen: list[str] = []
    calls = {name: [lambda tag=f"{name}{index}": seen.append(tag) for index in range(2)] for name in "ab"}
    times = time_in_turns(calls, range(3), seconds=0.0)
    assert seen == ["a0", "a1", "a0", "b0", "b1", "b0", *["a1", "b1", "a0", "b0", "a1", "b1"]]
    assert set(times) == {"a", "b"}


def test_median_and_spread() -> None:
    assert median_and_spread([3.0, 1.0, 2.0]) == (2.0, 1.0)
    calls: list[int] = []
    seconds, spread = median_seconds(lambda: calls.append(1), seconds=0.0, repeats=5)
    assert len(calls) == 1 + 1 + 1 + 5
    assert seconds > 0
    assert spread >= 0
