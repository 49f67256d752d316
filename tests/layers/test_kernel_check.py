"""check_kernels passes on the kernels there are, and sees a kernel that is wrong in one bit."""

import pytest
import torch
from torch import Tensor

from bitcore import BitQuantConfig, KernelNotFoundError
from bitcore.exceptions import LayerStateError
from bitcore.kernels import BitKernelBase, KernelRegistry
from bitcore.packed_weight import PackedWeight
from bitlayers import BitConv2d, BitEmbedding, BitLinear, check_kernels

CONFIGS = [
    BitQuantConfig(),
    BitQuantConfig(storage_format="base3", weight_granularity="per_channel"),
    BitQuantConfig.int8_per_tensor(),
    BitQuantConfig.weight_only(),
    BitQuantConfig.int4(32),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_kernels_there_are_pass(config: BitQuantConfig) -> None:
    layer = BitLinear(96, 40, quant_config=config).deploy()
    checks = check_kernels(layer)
    here = set(KernelRegistry.list_available_kernels())
    assert {check.kernel for check in checks} == set(KernelRegistry._kernels) - {"reference"}
    for check in checks:
        assert check.passed == (check.unusable is None), check
        assert check.unusable is None or check.kernel not in here or "device" in check.unusable, check


def test_layers_of_all_kinds_and_both_states() -> None:
    for layer in (BitConv2d(3, 8, 3).eval(), BitEmbedding(20, 16).deploy(), BitLinear(7, 3, bias=False).eval()):
        checks = [check for check in check_kernels(layer, batches=(2,)) if check.unusable is None]
        assert all(check.passed for check in checks)
        assert not layer.training


@pytest.mark.parametrize(
    ("config", "wrong", "seen_in"),
    [
        (BitQuantConfig(), lambda y: y.nextafter(torch.tensor(torch.inf)), "batch 1: "),
        (BitQuantConfig(), lambda y: y.nan_to_num(0.0), "NaN: "),
        (BitQuantConfig(), lambda y: y[:, :-1], "batch 1: torch.float32 [1, 4], expected torch.float32 [1, 5]"),
        (BitQuantConfig.weight_only(), lambda y: y * (1 + 1e-3), "batch 1: "),
    ],
)
def test_a_wrong_kernel_is_seen(
    config: BitQuantConfig, wrong: object, seen_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KernelRegistry, "_kernels", dict(KernelRegistry._kernels))
    reference = KernelRegistry._kernels["reference"]

    @KernelRegistry.register("wrong")
    class WrongKernel(BitKernelBase):
        dtypes = frozenset({torch.float32})

        def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
            return wrong(reference(self.config).linear(x, weight, bias))  # type: ignore[operator]

    layer = BitLinear(64, 5, quant_config=config).deploy()
    served, *refused = check_kernels(layer, kernels=["wrong"])
    assert not served.passed
    assert served.difference is not None
    assert served.difference.startswith(seen_in)
    assert [check.unusable for check in refused] == [
        f"dtype is torch.{dtype}, serves torch.float32" for dtype in ("bfloat16", "float16")
    ]
    assert all(check.passed for check in check_kernels(layer) if check.unusable is None and check.kernel != "wrong")
    KernelRegistry._forget_decisions()


def test_the_same_generator_gives_the_same_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    reference = KernelRegistry._kernels["reference"]
    linear = reference.linear

    def spy(self: BitKernelBase, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
        seen.append(x)
        return linear(self, x, weight, bias)

    monkeypatch.setattr(reference, "linear", spy)
    layer = BitLinear(16, 4).deploy()
    for _ in range(2):
        check_kernels(layer, dtypes=[torch.float32], generator=torch.Generator().manual_seed(7))
    first, again = (tokens.nan_to_num(0.5) for tokens in seen)
    assert torch.equal(first, again)
    assert len(first) > 40


def test_what_cannot_be_checked() -> None:
    layer = BitLinear(8, 8)
    with pytest.raises(LayerStateError, match="training mode"):
        check_kernels(layer)
    with pytest.raises(KernelNotFoundError, match="no kernel is named 'avx51'"):
        check_kernels(layer.eval(), kernels=["avx51"])
