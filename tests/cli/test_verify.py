"""`bitlab verify`: kernels equal the reference on a model's layers, and one that does not is named."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import Models, Run, small_transformer
from torch import Tensor, nn

from bitcore.kernels import BitKernelBase, KernelRegistry
from bitcore.packed_weight import PackedWeight
from bitmodels.adapters.foreign_model import PROJECTIONS

LAYER = "model.layers.0.mlp.down_proj"


@pytest.fixture
def wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A kernel that adds one unit in the last place to one output of one token."""
    monkeypatch.setattr(KernelRegistry, "_kernels", dict(KernelRegistry._kernels))
    reference = KernelRegistry._kernels["reference"]

    @KernelRegistry.register("almost")
    class AlmostKernel(BitKernelBase):
        dtypes = frozenset({torch.float32})

        def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
            y = reference(self.config).linear(x, weight, bias)
            if x.shape[0] == 33:
                y[20, 5] = y[20, 5].nextafter(torch.tensor(torch.inf))
            return y

    yield
    KernelRegistry._forget_decisions()


@pytest.mark.parametrize("source", ["trained", "deployed", "mlp", "hf", "gguf"])
def test_every_kernel_here_is_compared(source: str, made: Models, run_json: Callable[..., Any]) -> None:
    answer = run_json("verify", getattr(made, source))
    here = set(KernelRegistry.list_available_kernels()) - {"reference"}
    compared = {row["kernel"]: row for row in answer["kernels"]}
    assert set(compared) == {name for name in here if KernelRegistry._kernels[name].device_types != {"cuda"}}
    assert {row["layers"] for row in compared.values()} == {answer["layers"]}
    assert answer["layers"] == (3 if source == "mlp" else 7)
    assert min(row["outputs"] for row in compared.values()) > 0
    assert answer["differences"] == []
    assert {row["kernel"] for row in answer["unusable"]} == set(KernelRegistry._kernels) - here - {"reference"}


def test_a_difference_names_layer_and_kernel(made: Models, run: Run, wrong_kernel: None) -> None:
    result = run("verify", made.deployed)
    assert result.exit_code == 1
    place = f"batch 33: 1 of {33 * 256} outputs differ, the first at [20, 5]: "
    assert f"error: {LAYER}: almost, float32: {place}" in result.stderr
    assert result.stderr.count("almost") == 7
    assert "7 checks differ" in result.stdout
    result = run("verify", made.deployed, "--json")
    assert result.exit_code == 1
    assert f'"layer": "{LAYER}"' in result.stdout
    assert run("verify", made.deployed, "--batch", "3", "--kernel", "almost").exit_code == 0


def test_options_choose_kernel_dtype_and_inputs(made: Models, run_json: Callable[..., Any]) -> None:
    options = ("--kernel", "portable", "--dtype", "bfloat16", "--batch", 1, "--seed", 3, "--threads", 1)
    answer = run_json("verify", made.deployed, *options)
    tokens = 1 + 3 + 4 + 2 * 3
    assert answer["seed"] == 3
    assert answer["unusable"] == []
    assert answer["kernels"] == [{"kernel": "portable", "layers": 7, "outputs": tokens * outputs_of_a_token(made)}]


def outputs_of_a_token(made: Models) -> int:
    """Outputs that all Bit layers together give for a token."""
    return sum(m.out_features for m in made.model.modules() if isinstance(m, nn.Linear)) - made.model.config.vocab_size


def test_nothing_to_compare_is_an_error(made: Models, run: Run, tmp_path: Path) -> None:
    small_transformer(full_precision=tuple(f"model.layers.0.{name}" for name in PROJECTIONS)).save_pretrained(tmp_path)
    not_here = next(name for name, kernel in KernelRegistry._kernels.items() if kernel.unavailable_reason() is not None)
    for model, options, message in (
        (
            tmp_path,
            [],
            "nothing to compare, expected with Bit layers that a kernel can serve here (it has",
        ),
        (made.deployed, ["--kernel", not_here], f"({not_here}: "),
        (made.deployed, ["--kernel", "avx51"], "no kernel is named 'avx51'"),
        ("/no/such/model", [], "no such file or directory"),
    ):
        result = run("verify", model, *options)
        assert result.exit_code == 2
        assert message in result.stderr
