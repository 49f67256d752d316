"""Activations that stay floating-point: what compiled kernels compute of them, and how far any kernel may be off."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_and_configs import (
    DTYPES,
    FLOAT_CONFIGS,
    assert_same,
    assume_served,
    every_compiled_kernel,
    every_other_kernel,
    random_weight,
    serve,
)
from torch import Tensor

from bitcore import BitQuantConfig
from bitcore.kernels import BitKernelBase
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import dequantize, per_weight


def fixed_point_definition(x: Tensor, weight: PackedWeight, bias: Tensor, config: BitQuantConfig) -> Tensor:
    """What compiled kernels compute of floating-point activations: exact sums of 24-bit fixed-point numbers."""
    x, bias, weight = x.cpu(), bias.cpu(), weight._replace(packed=weight.packed.cpu(), scale=weight.scale.cpu())
    if weight.zero_point is not None:
        weight = weight._replace(zero_point=weight.zero_point.cpu())
    largest = x.float().abs().amax(1, keepdim=True).clamp(min=1e-30)
    factor = torch.full_like(largest, 127 * 65536) / largest  # of a number, PyTorch would multiply with the reciprocal
    rest = (x.float() * factor).round().long()
    digits = []
    for _ in range(3):
        digits.insert(0, (rest + 128) % 256 - 128)
        rest = (rest - digits[0]) // 256
    values = weight.values(config).long()
    if weight.zero_point is not None:
        values = values - per_weight(weight.zero_point, values, config).long()
    grouped = weight.scale.dim() == 2
    size = config.group_size if grouped else values.shape[1]
    x_scale = largest / (127 * 65536)
    y = torch.zeros(x.shape[0], values.shape[0], device="cpu")
    for g, group in enumerate(values.split(size, 1)):
        sums = [(digit.split(size, 1)[g] @ group.T).float() for digit in digits]
        product = (sums[0] * 256 + sums[1]) * 256 + sums[2]
        y = y + product * weight.scale[:, g] if grouped else product * (x_scale * weight.scale)
    return ((y * x_scale if grouped else y) + bias.float()).to(x.dtype)


@every_compiled_kernel
@settings(max_examples=150)
@given(
    rows=st.integers(1, 9),
    out_features=st.integers(1, 140),
    in_features=st.integers(1, 3 * 256 + 40),
    dtype=st.sampled_from(DTYPES),
    config=st.sampled_from(FLOAT_CONFIGS),
    scale=st.sampled_from([1e-30, 1e-7, 1.0, 1e3, 1e37]),
    seed=st.integers(0, 2**31),
)
def test_floating_point_activations_equal_their_definition(
    kernel_class: type[BitKernelBase],
    rows: int,
    out_features: int,
    in_features: int,
    dtype: torch.dtype,
    config: BitQuantConfig,
    scale: float,
    seed: int,
) -> None:
    assume_served(kernel_class, config)
    torch.manual_seed(seed)
    weight = random_weight(out_features, in_features, config)
    x = (torch.randn(rows, in_features).clamp(-9, 9) * scale).to(dtype)
    x = x.where(x.isfinite(), 0.0)
    bias = torch.randn(out_features).to(dtype)
    assert_same(kernel_class(config).linear(x, weight, bias).cpu(), fixed_point_definition(x, weight, bias, config))


@pytest.mark.parametrize("kernel_class", ["triton"], indirect=True)
@settings(max_examples=60)
@given(
    out_features=st.integers(1, 35).map(lambda rows: 4 * rows),  # of whole words
    in_features=st.integers(1, 3 * 256 + 40),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    config=st.sampled_from([config for config in FLOAT_CONFIGS if config.weight_granularity != "per_group"]),
    scale=st.sampled_from([1e-30, 1e-7, 1.0, 1e3]),
    bad=st.sampled_from([None, None, math.inf, -math.inf, math.nan]),
    seed=st.integers(0, 2**31),
)
def test_one_token_equals_the_definition_on_any_shape(
    kernel_class: type[BitKernelBase],
    out_features: int,
    in_features: int,
    dtype: torch.dtype,
    config: BitQuantConfig,
    scale: float,
    bad: float | None,
    seed: int,
) -> None:
    assume_served(kernel_class, config)
    torch.manual_seed(seed)
    weight = random_weight(out_features, in_features, config)
    x = (torch.randn(1, in_features) * scale).to(dtype)
    bias = torch.randn(out_features).to(dtype)
    expected = fixed_point_definition(x, weight, bias, config)
    if bad is not None:
        x[0, seed % in_features] = bad
        expected.fill_(math.nan)
    assert_same(kernel_class(config).linear(x, weight, bias).cpu(), expected)


@every_other_kernel
@pytest.mark.parametrize("config", FLOAT_CONFIGS, ids=str)
def test_floating_point_activations_lose_no_more_than_float32(
    kernel_class: type[BitKernelBase], config: BitQuantConfig
) -> None:
    """Against float64: the error is that of 24 bits of the largest activation, outliers included."""
    weight = random_weight(50, 1100, config)
    x = torch.randn(4, 1100)
    x[1, 7], x[2] = 1000.0, x[2] * 1e-20
    exact = x.double() @ dequantize(weight.values(config), weight.scale, weight.zero_point, config).double().T
    error = (serve(kernel_class, config).linear(x, weight).double() - exact).abs()
    weights = dequantize(weight.values(config), weight.scale, weight.zero_point, config).double().abs()
    bound = 2**-22 * x.abs().amax(1, keepdim=True).double() * weights.sum(1)
    assert (error <= bound).all()


@every_compiled_kernel
@pytest.mark.parametrize("config", FLOAT_CONFIGS, ids=str)
def test_nan_and_inf_spoil_their_own_token(kernel_class: type[BitKernelBase], config: BitQuantConfig) -> None:
    weight = random_weight(7, 70, config)
    for bad in (math.nan, math.inf, -math.inf):
        x = torch.randn(5, 70)
        x[2, 69] = bad
        y = serve(kernel_class, config).linear(x, weight, torch.randn(7))
        assert y.isnan().all(1).tolist() == y.isnan().any(1).tolist() == [False, False, True, False, False]
    assert_same(kernel_class(config).linear(torch.zeros(2, 70), weight, torch.ones(7)), torch.ones(2, 7))
