"""Every kernel that the registry knows equals the reference bit for bit."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernels_and_configs import (
    CONFIGS,
    DTYPES,
    FLOAT_CONFIGS,
    assert_same,
    assume_served,
    every_config,
    every_kernel,
    every_other_kernel,
    random_weight,
    serve,
)

from bitcore import BitQuantConfig
from bitcore.kernels import BitKernelBase
from bitcore.kernels.reference import ReferenceKernel


@every_kernel
@every_config
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_reference_at_its_edges(
    kernel_class: type[BitKernelBase], config: BitQuantConfig, dtype: torch.dtype
) -> None:
    kernel = serve(kernel_class, config, dtype)
    reference = ReferenceKernel(config)
    for in_features in (1, 3, 5, 64, 200, *kernel_class.test_in_features):
        for out_features in (1, 17, *kernel_class.test_out_features):
            weight = random_weight(out_features, in_features, config)
            bias = torch.randn(out_features).to(dtype)
            for rows in (1, 2, 3, 4, 5, 9, *kernel_class.test_rows):
                x = torch.randn(rows, in_features).to(dtype)
                assert_same(kernel.linear(x, weight, bias), reference.linear(x, weight, bias))


@every_other_kernel
@settings(max_examples=150)
@given(
    rows=st.integers(0, 14),
    out_features=st.integers(0, 140),
    in_features=st.integers(1, 3 * 256 + 40),
    dtype=st.sampled_from(DTYPES),
    bias_dtype=st.sampled_from([None, *DTYPES]),
    config=st.sampled_from(CONFIGS),
    scale=st.sampled_from([1e-44, 1e-7, 1e-3, 1.0, 1e3, 1e38]),
    seed=st.integers(0, 2**31),
)
@example(1, 1, 1, torch.float32, None, CONFIGS[0], 1.0, 0)
def test_equals_reference_on_any_shape(
    kernel_class: type[BitKernelBase],
    rows: int,
    out_features: int,
    in_features: int,
    dtype: torch.dtype,
    bias_dtype: torch.dtype | None,
    config: BitQuantConfig,
    scale: float,
    seed: int,
) -> None:
    assume_served(kernel_class, config, dtype)
    torch.manual_seed(seed)
    weight = random_weight(out_features, in_features, config)
    x = (torch.randn(rows, in_features) * scale).to(dtype)
    bias = None if bias_dtype is None else torch.randn(out_features).to(bias_dtype)
    assert_same(kernel_class(config).linear(x, weight, bias), ReferenceKernel(config).linear(x, weight, bias))


@every_other_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_of_x(kernel_class: type[BitKernelBase], dtype: torch.dtype) -> None:
    config = BitQuantConfig()
    kernel, reference = serve(kernel_class, config, dtype), ReferenceKernel(config)
    weight = random_weight(9, 67, config)
    base = torch.randn(6, 8, 200).to(dtype)
    views = {
        "rows apart": base[0, :, :67],
        "every second row": base[:, ::2, 5:72],
        "rows outside": base[::2, 3, 1:68],
        "transposed": base.transpose(0, 1)[..., :67],
        "columns apart": base[..., ::3],
        "expanded": base[:1, :1, :67].expand(6, 8, 67),
        "vector": base[0, 0, 100:167],
        "reversed dimensions": torch.randn(67, 3, 4).to(dtype).permute(2, 1, 0),
        "one column apart": torch.randn(67, 4).to(dtype).T[1:2],
    }
    for name, x in views.items():
        y = kernel.linear(x, weight)
        assert y.shape == (*x.shape[:-1], 9), name
        assert_same(y, reference.linear(x.contiguous(), weight))
        assert_same(reference.linear(x, weight), y)


@every_kernel
@every_config
def test_empty_inputs_give_empty_outputs(kernel_class: type[BitKernelBase], config: BitQuantConfig) -> None:
    kernel = serve(kernel_class, config)
    weight = random_weight(5, 40, config)
    for shape in ((0, 40), (2, 0, 40), (0, 3, 40)):
        assert kernel.linear(torch.randn(shape), weight, torch.randn(5)).shape == (*shape[:-1], 5)
    assert kernel.linear(torch.randn(3, 40), random_weight(0, 40, config)).shape == (3, 0)


@every_other_kernel
@every_config
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_inf_are_those_of_the_reference(
    kernel_class: type[BitKernelBase], config: BitQuantConfig, dtype: torch.dtype
) -> None:
    weight = random_weight(7, 70, config)
    bias = torch.randn(7)
    for bad in (math.nan, math.inf, -math.inf):
        x = torch.randn(5, 70).to(dtype)
        x[2, 69] = bad
        y = serve(kernel_class, config, dtype).linear(x, weight, bias)
        assert_same(y, ReferenceKernel(config).linear(x, weight, bias))
        spoilt = y.isnan().all(1).tolist()
        assert spoilt == (
            [True] * 5 if config.activation_granularity == "per_tensor" else [False, False, True, False, False]
        )
        assert y.isnan().any(1).tolist() == spoilt


@every_other_kernel
def test_results_that_leave_float16_or_are_denormal(kernel_class: type[BitKernelBase]) -> None:
    config = BitQuantConfig(weight_granularity="per_channel")
    scales = torch.logspace(-12, 5, 120)
    for in_features, dtype in ((300, torch.float16), (300, torch.bfloat16)):
        weight = random_weight(120, in_features, config)._replace(scale=scales)
        x = torch.randn(6, in_features).to(dtype)
        assert_same(kernel_class(config).linear(x, weight), ReferenceKernel(config).linear(x, weight))


@every_kernel
@pytest.mark.parametrize("config", [*CONFIGS[:5], CONFIGS[9], FLOAT_CONFIGS[0]], ids=str)
@pytest.mark.parametrize("with_bias", [(True, True, True), (False, False, False), (True, False, True)], ids=str)
@pytest.mark.parametrize("rows", [1, 9])
def test_a_group_equals_its_layers(
    kernel_class: type[BitKernelBase], config: BitQuantConfig, with_bias: tuple[bool, ...], rows: int
) -> None:
    kernel = serve(kernel_class, config)
    weights = [random_weight(out_features, 300, config) for out_features in (130, 1, 517)]
    biases = [torch.randn(len(weight.packed)) if b else None for weight, b in zip(weights, with_bias, strict=True)]
    x = torch.randn(2, rows, 300)[:, ::2]
    together = kernel.linear_group(x, weights, biases)
    assert len(together) == 3
    for y, weight, bias in zip(together, weights, biases, strict=True):
        assert_same(y, kernel.linear(x, weight, bias))
