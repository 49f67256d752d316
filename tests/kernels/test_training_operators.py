"""The fused operators of training give the values and scales that bitcore.quantizers defines, on every kernel here."""

from itertools import product

import pytest
import torch
from torch import Tensor

from bitcore import BitQuantConfig
from bitcore.kernels import BitKernelBase, KernelRegistry
from bitcore.kernels.training import TrainingOperators
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import dequantize, quantize_activations

CONFIGS = [
    BitQuantConfig(weight_granularity=granularity, weight_quantizer=quantizer, storage_format=storage_format)
    for granularity, quantizer, storage_format in product(
        ("per_tensor", "per_channel"), ("absmean", "threshold"), ("2bit", "base3")
    )
]
SHAPES = [(1, 1), (3, 5), (37, 1283), (2, 2600), (130, 64)]


def kernels_that_train() -> list[str]:
    names = KernelRegistry.list_available_kernels()
    return [name for name in names if operators_of(name, BitQuantConfig()) is not None]


def kernel_of(name: str, config: BitQuantConfig) -> BitKernelBase:
    return KernelRegistry.get_kernel_by_name(name, config)


def operators_of(name: str, config: BitQuantConfig) -> TrainingOperators | None:
    return kernel_of(name, config).training_operators()


def device_of(kernel: BitKernelBase) -> str:
    return "cpu" if kernel.device_types is None or "cpu" in kernel.device_types else min(kernel.device_types)


def inputs(name: str, *shape: int) -> list[Tensor]:
    """Random numbers of every dtype that the kernel serves, large and small rows, with exact zeros among them."""
    kernel = kernel_of(name, BitQuantConfig())
    x = (
        torch.randn(*shape, device=device_of(kernel))
        * torch.logspace(-3, 2, shape[0], device=device_of(kernel))[:, None]
    )
    x[torch.rand_like(x) < 0.1] = 0.0
    assert kernel.dtypes is not None
    return [x.to(dtype) for dtype in sorted(kernel.dtypes, key=str)]


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


pytestmark = pytest.mark.parametrize("name", kernels_that_train())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_there_and_back(name: str, config: BitQuantConfig, shape: tuple[int, int]) -> None:
    operators = operators_of(name, config)
    assert operators is not None
    for weight in inputs(name, *shape):
        packed, expected = operators.quantize_weight(weight), PackedWeight.from_float(weight, config)
        assert torch.equal(packed.packed, expected.packed)
        assert same(packed.scale, expected.scale)
        floats = dequantize(expected.values(config), expected.scale, None, config)
        assert same(operators.dequantize_weight(packed, weight.dtype), floats.to(weight.dtype))


@pytest.mark.parametrize("granularity", ["per_token", "per_tensor"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_activations_there_and_back(name: str, granularity: str, shape: tuple[int, int]) -> None:
    operators = operators_of(name, BitQuantConfig(activation_granularity=granularity))
    assert operators is not None
    for x in inputs(name, *shape):
        rows = torch.cat([x, x], 1)[:, : shape[1]]  # rows that do not touch
        q, scale = operators.quantize_activations(rows)
        expected_q, expected_scale = quantize_activations(x, granularity)
        assert torch.equal(q, expected_q)
        assert same(scale, expected_scale)
        assert same(operators.dequantize_activations(q, scale, x.dtype), (expected_q * expected_scale).to(x.dtype))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_shows(name: str, value: float) -> None:
    for quantizer in ("absmean", "threshold"):
        operators = operators_of(name, BitQuantConfig(weight_quantizer=quantizer))
        assert operators is not None
        for weight in inputs(name, 3, 70):
            weight[1, 64] = value
            packed = operators.quantize_weight(weight)
            assert not packed.scale.isfinite().any()
            q, scale = operators.quantize_activations(weight)
            assert q[1].eq(0).all()
            assert scale.isnan().flatten().tolist() == [False, True, False]


def test_the_smallest_scale(name: str) -> None:
    for quantizer, smallest in (("absmean", 1e-5), ("threshold", 1e-8)):
        operators = operators_of(name, BitQuantConfig(weight_quantizer=quantizer, weight_granularity="per_channel"))
        assert operators is not None
        for weight in inputs(name, 2, 9):
            packed = operators.quantize_weight(torch.zeros_like(weight))
            assert torch.equal(packed.scale, torch.full_like(packed.scale, smallest))
            assert not operators.dequantize_weight(packed, weight.dtype).any()


def test_scales_are_rounded_and_weights_are_not(name: str) -> None:
    config = BitQuantConfig(weight_scale_dtype="bfloat16")
    operators = operators_of(name, config)
    assert operators is not None
    for weight in inputs(name, 5, 40):
        packed, expected = operators.quantize_weight(weight), PackedWeight.from_float(weight, config)
        assert torch.equal(packed.packed, expected.packed)
        assert same(packed.scale, expected.scale)
