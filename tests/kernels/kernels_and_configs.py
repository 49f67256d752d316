"""The kernels and configs under test, and what equality of two outputs means."""

import pytest
import torch
from hypothesis import assume
from torch import Tensor

from bitcore import BitQuantConfig
from bitcore.kernels import BitKernelBase, KernelRegistry, KernelRequest
from bitcore.packed_weight import PackedWeight

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CONFIGS = [
    BitQuantConfig(),
    BitQuantConfig(weight_granularity="per_channel"),
    BitQuantConfig.int8_per_tensor(),
    BitQuantConfig(storage_format="base3"),
    BitQuantConfig(storage_format="base3", weight_granularity="per_channel", activation_granularity="per_tensor"),
    BitQuantConfig(weight_granularity="per_group", group_size=32),
    BitQuantConfig(storage_format="base3", weight_granularity="per_group", group_size=35),
    BitQuantConfig(weight_dtype="int4", weight_granularity="per_channel"),
    BitQuantConfig(weight_dtype="int4", weight_granularity="per_tensor", weight_quantizer="minmax"),
    BitQuantConfig(weight_dtype="int4", weight_granularity="per_group", weight_quantizer="minmax", group_size=32),
    BitQuantConfig(weight_granularity="per_group", group_size=128),
    BitQuantConfig(storage_format="base3", weight_granularity="per_group", group_size=160),
    BitQuantConfig(weight_dtype="int8", weight_granularity="per_channel"),
    BitQuantConfig(weight_dtype="int8", weight_granularity="per_group", group_size=33),
    BitQuantConfig(weight_dtype="int8", weight_granularity="per_group", group_size=64),
]
FLOAT_CONFIGS = [config.model_copy(update={"activation_dtype": "float32"}) for config in CONFIGS]
OTHERS = sorted(name for name in KernelRegistry._kernels if name != "reference")
COMPILED = [name for name in OTHERS if KernelRegistry._kernels[name].has_cpp_backend]
every_kernel = pytest.mark.parametrize("kernel_class", sorted(KernelRegistry._kernels), indirect=True)
every_other_kernel = pytest.mark.parametrize("kernel_class", OTHERS, indirect=True)
every_compiled_kernel = pytest.mark.parametrize("kernel_class", COMPILED, indirect=True)
every_config = pytest.mark.parametrize("config", CONFIGS, ids=str)


def serve(
    kernel_class: type[BitKernelBase], config: BitQuantConfig, dtype: torch.dtype = torch.float32
) -> BitKernelBase:
    """The kernel for `config` on its own device, or a skip with its reason."""
    device_type = torch.get_default_device().type  # that of the kernel, see the fixture
    reason = kernel_class.unsupported_reason(KernelRequest(config, device_type, dtype))
    if reason is not None:
        pytest.skip(reason)
    return kernel_class(config)


def assume_served(
    kernel_class: type[BitKernelBase],
    config: BitQuantConfig,
    dtype: torch.dtype = torch.float32,
    in_features: int | None = None,
) -> None:
    """`serve` where hypothesis draws the config: leaves out the example alone."""
    request = KernelRequest(config, torch.get_default_device().type, dtype, in_features)
    assume(kernel_class.unsupported_reason(request) is None)


def random_weight(rows: int, columns: int, config: BitQuantConfig) -> PackedWeight:
    return PackedWeight.from_float(torch.randn(rows, columns), config)


def assert_same(y: Tensor, expected: Tensor) -> None:
    assert y.dtype == expected.dtype
    assert y.shape == expected.shape
    same = (y == expected) | (y.isnan() & expected.isnan())
    assert same.all(), f"{(~same).sum()} of {y.numel()} differ, first at {(~same).nonzero()[0].tolist()}"
