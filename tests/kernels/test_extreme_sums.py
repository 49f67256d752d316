"""Sums of extreme weights and activations, in layers as wide as they may be, neither saturate nor wrap around."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_and_configs import CONFIGS, assert_same, assume_served, every_other_kernel, serve
from torch import Tensor

from bitcore import BitQuantConfig
from bitcore.kernels import BitKernelBase
from bitcore.kernels.base import MAX_IN_FEATURES
from bitcore.kernels.compiled import MAX_INT4_IN_FEATURES, MAX_INT8_IN_FEATURES
from bitcore.kernels.reference import ReferenceKernel
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import VALUE_RANGE, QuantizedWeight


@every_other_kernel
@settings(max_examples=120)
@given(
    config=st.sampled_from([CONFIGS[0], CONFIGS[3], CONFIGS[7], BitQuantConfig(weight_dtype="int8")]),
    activation=st.sampled_from(["lowest", "highest", "mixed"]),
    weight=st.sampled_from(["lowest", "highest", "mixed"]),
    rows=st.sampled_from([1, 4, 5]),
    in_features=st.sampled_from([255, 256, 4095, 16384, 70000]),
)
def test_extreme_values_do_not_saturate(
    kernel_class: type[BitKernelBase], config: BitQuantConfig, activation: str, weight: str, rows: int, in_features: int
) -> None:
    assume_served(kernel_class, config, in_features=in_features)
    x = 3.7 * extremes(activation, -1, 1, (rows, in_features)).float()
    values = extremes(weight, *VALUE_RANGE[config.weight_dtype], (5, in_features))
    scale = torch.full((1 if config.weight_granularity == "per_tensor" else 5,), 0.5)
    packed = PackedWeight.from_quantized(QuantizedWeight(values, scale, None), config)
    assert_same(kernel_class(config).linear(x, packed), ReferenceKernel(config).linear(x, packed))


def extremes(kind: str, lowest: int, highest: int, shape: tuple[int, int]) -> Tensor:
    """int8: all lowest, all highest, or one of both at every place."""
    is_highest = torch.randint(0, 2, shape) if kind == "mixed" else torch.full(shape, int(kind == "highest"))
    return (lowest + (highest - lowest) * is_highest).to(torch.int8)


@every_other_kernel
@pytest.mark.parametrize("storage_format", ["2bit", "base3", "int4", "int8"])
def test_the_widest_layer_is_exact(kernel_class: type[BitKernelBase], storage_format: str) -> None:
    """The highest in_features with all codes and all activations extreme: the sum of codes * q reaches nearly 2**31."""
    if kernel_class.name == "triton" and torch.get_default_device().type == "cpu":
        pytest.skip("the interpreter would take minutes")
    if storage_format == "int4":
        config = BitQuantConfig(weight_dtype="int4", weight_quantizer="minmax")
        in_features, highest = MAX_INT4_IN_FEATURES, 7
    elif storage_format == "int8":
        config = BitQuantConfig(weight_dtype="int8")
        in_features, highest = MAX_INT8_IN_FEATURES, 127
    else:
        config = BitQuantConfig(storage_format=storage_format)
        in_features, highest = MAX_IN_FEATURES, 1
    values = torch.full((2, in_features), highest, dtype=torch.int8)
    zero_point = torch.tensor([-8], dtype=torch.int8) if storage_format == "int4" else None
    packed = PackedWeight.from_quantized(QuantizedWeight(values, torch.ones(1), zero_point), config)
    serve(kernel_class, config)
    sum_of_weights = in_features * (15 if storage_format == "int4" else highest)
    for value in (1.0, -1.0):
        y = kernel_class(config).linear(torch.full((1, in_features), value), packed)
        assert_same(y, torch.full((1, 2), value * 127 * sum_of_weights * (torch.tensor(1.0) / 127).item()))
