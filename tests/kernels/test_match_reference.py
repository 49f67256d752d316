"""Every kernel that the registry knows equals the reference bit for bit; the reference equals the definition, written
out slowly.
"""

import math

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitcore import BitQuantConfig
from bitcore.kernels import BitKernelBase, KernelRegistry, KernelRequest
from bitcore.kernels.base import MAX_IN_FEATURES
from bitcore.kernels.compiled import MAX_INT4_IN_FEATURES, MAX_INT8_IN_FEATURES
from bitcore.kernels.reference import ReferenceKernel
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import VALUE_RANGE, QuantizedWeight, dequantize, per_weight

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
]
FLOAT_CONFIGS = [config.model_copy(update={"activation_dtype": "float32"}) for config in CONFIGS]
OTHERS = sorted(name for name in KernelRegistry._kernels if name != "reference")
every_kernel = pytest.mark.parametrize("kernel_class", sorted(KernelRegistry._kernels), indirect=True)
COMPILED = [name for name in OTHERS if KernelRegistry._kernels[name].has_cpp_backend]
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
    packed = PackedWeight.from_quantized(QuantizedWeight(values, torch.tensor([0.5]), None), config)
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


@every_compiled_kernel
@pytest.mark.parametrize("rows", [1, 6, 70])
def test_threads_do_not_change_bits(kernel_class: type[BitKernelBase], rows: int) -> None:
    config = BitQuantConfig()
    weight = random_weight(1030, 1500, config)
    x, bias = torch.randn(rows, 1500), torch.randn(1030)
    threads = torch.get_num_threads()
    try:
        outputs = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outputs.append(kernel_class(config).linear(x, weight, bias))
    finally:
        torch.set_num_threads(threads)
    assert_same(outputs[1], outputs[0])
    assert_same(outputs[2], outputs[0])
    assert_same(outputs[0], ReferenceKernel(config).linear(x, weight, bias))


@every_compiled_kernel
@pytest.mark.parametrize("in_features", [1, 64, 319, 320, 321, 1281, 2563])
def test_base3_decoded_once_for_many_tokens(kernel_class: type[BitKernelBase], in_features: int) -> None:
    for config in (CONFIGS[3], FLOAT_CONFIGS[3]):
        weight = random_weight(301, in_features, config)
        x, bias = torch.randn(70, in_features), torch.randn(301)
        expected = torch.cat([kernel_class(config).linear(part, weight, bias) for part in x.split(5)])
        for rows in (10, 11, 31, 32, 33, 70):
            assert_same(kernel_class(config).linear(x[:rows], weight, bias), expected[:rows])


@every_compiled_kernel
def test_more_tokens_than_scratch_holds(kernel_class: type[BitKernelBase]) -> None:
    config = BitQuantConfig()
    weight = random_weight(3, 20000, config)
    x = torch.randn(501, 20000)  # 10 MB of int8 activations, quantized in chunks
    assert_same(kernel_class(config).linear(x, weight), ReferenceKernel(config).linear(x, weight))


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
