"""The reference kernel equals the definition, written out slowly."""

import math

import pytest
import torch
from kernels_and_configs import CONFIGS, DTYPES, assert_same, every_config, random_weight
from torch import Tensor

from bitcore import BitQuantConfig
from bitcore.kernels.reference import ReferenceKernel
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import QuantizedWeight


def slow_definition(x: Tensor, weight: PackedWeight, bias: Tensor | None, config: BitQuantConfig) -> Tensor:
    """Python integers and single float32 operations, output by output."""
    values = weight.values(config).tolist()
    tokens = x.float()
    whole = tokens.abs().max()
    y = torch.empty(x.shape[0], len(values))
    for m, token in enumerate(tokens):
        largest = (whole if config.activation_granularity == "per_tensor" else token.abs().max()).clamp(min=1e-5)
        q = (token * (127 / largest)).round().clamp(-128, 127).int().tolist()
        x_scale = largest / 127
        for n, row in enumerate(values):
            size = config.group_size if config.weight_granularity == "per_group" else len(q)
            total = torch.zeros(())
            for g in range(math.ceil(len(q) / size)):
                part = slice(g * size, (g + 1) * size)
                index = (n, g) if config.weight_granularity == "per_group" else (n if len(weight.scale) > 1 else 0,)
                zero = 0 if weight.zero_point is None else int(weight.zero_point[index])
                product = torch.tensor(float(sum((w - zero) * a for w, a in zip(row[part], q[part], strict=True))))
                if config.weight_granularity == "per_group":
                    total = total + product * weight.scale[index]
                else:
                    total = product * (x_scale * weight.scale[index])
            if config.weight_granularity == "per_group":
                total = total * x_scale
            y[m, n] = total if bias is None else total + bias[n].float()
    return y.to(x.dtype)


@every_config
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference_equals_the_definition(config: BitQuantConfig, dtype: torch.dtype) -> None:
    weight = random_weight(5, 71, config)
    x, bias = torch.randn(3, 71).to(dtype), torch.randn(5)
    assert_same(ReferenceKernel(config).linear(x, weight, bias), slow_definition(x, weight, bias, config))


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
@pytest.mark.parametrize("weight_dtype", ["ternary", "int4"])
def test_reference_with_float_activations(weight_dtype: str, granularity: str) -> None:
    config = BitQuantConfig(
        weight_dtype=weight_dtype, weight_granularity=granularity, group_size=16, activation_dtype="float32"
    )
    weight = random_weight(6, 50, config)
    x, bias = torch.randn(4, 50), torch.randn(6)
    scale = weight.scale.repeat_interleave(16, 1)[:, :50] if granularity == "per_group" else weight.scale.reshape(-1, 1)
    expected = x.double() @ (weight.values(config) * scale.double()).T + bias
    torch.testing.assert_close(ReferenceKernel(config).linear(x, weight, bias).double(), expected, rtol=1e-5, atol=1e-5)


def test_reference_sums_are_exact_where_float32_products_are_not() -> None:
    """in_features so large that one float32 matrix product would round; int64 is the judge."""
    in_features = 300_000
    ternary = torch.ones(2, in_features, dtype=torch.int8)
    ternary[1, ::3] = 0
    x = torch.full((1, in_features), 1.0)
    x[0, ::2] = 0.992
    config = BitQuantConfig()
    weight = PackedWeight.from_quantized(QuantizedWeight(ternary, torch.ones(1), None), config)
    q = (x * (1 / x.abs().max() * 127)).round().long()
    expected = (q @ ternary.long().T).float() * (torch.tensor(1.0) / 127)
    assert_same(ReferenceKernel(config).linear(x, weight), expected)


def test_reference_on_meta_gives_shapes() -> None:
    for config in CONFIGS:
        weight = PackedWeight.from_float(torch.randn(5, 40, device="meta"), config)
        y = ReferenceKernel(config).linear(torch.randn(2, 3, 40, device="meta", dtype=torch.bfloat16), weight)
        assert (y.shape, y.dtype, y.device.type) == ((2, 3, 5), torch.bfloat16, "meta")


def test_reference_is_exact_under_autocast() -> None:
    config = BitQuantConfig()
    weight, x = random_weight(20, 300, config), torch.randn(4, 300)
    expected = ReferenceKernel(config).linear(x, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(ReferenceKernel(config).linear(x, weight), expected)
