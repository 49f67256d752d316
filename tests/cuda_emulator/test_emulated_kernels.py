"""The CUDA kernels on an emulated GPU, under AddressSanitizer: `make test-cuda-emulated`, on any x86-64 machine.

Each example draws the GPU, where threads change over, and when copies arrive.
"""

import random

import pytest
import torch
from emulated_cuda import DEVICES, DTYPES, EmulatedCuda, needs_library
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bitcore import BitQuantConfig
from bitcore.kernels.reference import ReferenceKernel
from bitcore.packed_weight import PackedWeight

pytestmark = needs_library
MINMAX = {"weight_dtype": "int4", "weight_quantizer": "minmax"}
PER_GROUP = {"weight_granularity": "per_group"}
CONFIGS = [
    BitQuantConfig(),
    BitQuantConfig(weight_granularity="per_channel", activation_granularity="per_tensor"),
    BitQuantConfig(storage_format="base3"),
    BitQuantConfig(storage_format="base3", weight_granularity="per_channel", activation_granularity="per_tensor"),
    BitQuantConfig(weight_granularity="per_channel", **MINMAX),
    BitQuantConfig(weight_granularity="per_tensor", **MINMAX),
    BitQuantConfig(weight_dtype="int8", weight_granularity="per_channel"),
    BitQuantConfig(group_size=64, **PER_GROUP),
    BitQuantConfig(storage_format="base3", group_size=160, **PER_GROUP),
    BitQuantConfig(group_size=32, **PER_GROUP, **MINMAX),
]
MOST_PRODUCTS = 30_000_000  # of an example, which takes about a second then
sizes = st.one_of(st.integers(1, 1300), st.integers(1, 10).map(lambda count: 256 * count))


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int]:
    """Rows, out_features, in_features: around the paths and tiles."""
    rows = draw(st.one_of(st.integers(1, 20), st.sampled_from([33, 63, 64, 65, 128, 129, 200, 300])))
    out_features, in_features = draw(st.one_of(st.integers(1, 400), st.sampled_from([1024, 2560]))), draw(sizes)
    assume(rows * out_features * in_features < MOST_PRODUCTS)
    return rows, out_features, in_features


def shifted(tensor: torch.Tensor, by: int) -> torch.Tensor:
    """The same values `by` elements behind the beginning of memory that ends with them."""
    return torch.cat([tensor.new_empty(by), tensor.flatten()])[by:].view(tensor.shape)


@settings(max_examples=150)
@given(
    shape=shapes(),
    config=st.sampled_from(CONFIGS),
    floating=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    bias_dtype=st.sampled_from([None, *DTYPES]),
    shifts=st.tuples(st.sampled_from([0, 0, 16, 1, 3]), st.sampled_from([0, 0, 8, 1])),
    gap=st.sampled_from([0, 0, 8, 5]),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_any_call(
    shape: tuple[int, int, int],
    config: BitQuantConfig,
    floating: bool,
    dtype: torch.dtype,
    bias_dtype: torch.dtype | None,
    shifts: tuple[int, int],
    gap: int,
    scale: float,
    seed: int,
) -> None:
    rows, out_features, in_features = shape
    torch.manual_seed(seed)
    device = random.Random(seed).choice(DEVICES)
    if floating:
        config = config.model_copy(update={"activation_dtype": "float32"})
    weight = PackedWeight.from_float(torch.randn(out_features, in_features), config)
    weight = weight._replace(packed=shifted(weight.packed, shifts[0]))
    x = shifted((torch.randn(rows, in_features + gap) * scale).to(dtype), shifts[1])[:, :in_features]
    bias = None if bias_dtype is None else torch.randn(out_features).to(bias_dtype)
    y = EmulatedCuda(config, device).linear(x, weight, bias)
    expected = ReferenceKernel(config).linear(x, weight, bias)
    if floating:
        torch.testing.assert_close(y.double(), expected.double(), rtol=0.02, atol=0.01 * max(1.0, scale))
    else:
        assert torch.equal(y, expected), f"{(y != expected).sum()} of {y.numel()} differ"


@settings(max_examples=40)
@given(
    out_features=st.integers(1, 700),
    in_features=st.integers(1, 20000),
    dtype=st.sampled_from(DTYPES),
    shift=st.sampled_from([0, 0, 4, 1]),
    seed=st.integers(0, 2**31),
)
def test_one_token_of_rows_that_start_at_any_byte(
    out_features: int, in_features: int, dtype: torch.dtype, shift: int, seed: int
) -> None:
    """Three digits of a token are multiplied by other kernels when there are two tokens."""
    assume(out_features * in_features < MOST_PRODUCTS / 10)
    torch.manual_seed(seed)
    config = BitQuantConfig(storage_format="base3")
    device = random.Random(seed).choice(DEVICES)
    weight = PackedWeight.from_float(torch.randn(out_features, in_features), config)
    x = shifted(torch.randn(2, in_features).to(dtype), shift)
    y = EmulatedCuda(config, device).linear(x[:1], weight)
    assert torch.equal(y, ReferenceKernel(config).linear(x[:1], weight))
    floating = EmulatedCuda(config.model_copy(update={"activation_dtype": "float32"}), device)
    assert torch.equal(floating.linear(x[:1], weight), floating.linear(x, weight)[:1])


@settings(max_examples=40)
@given(
    out_features=st.lists(st.integers(1, 300), min_size=2, max_size=5),
    rows=st.sampled_from([1, 3, 9, 20, 70]),
    in_features=sizes,
    config=st.sampled_from(CONFIGS),
    seed=st.integers(0, 2**31),
)
def test_groups_of_layers(
    out_features: list[int], rows: int, in_features: int, config: BitQuantConfig, seed: int
) -> None:
    assume(rows * sum(out_features) * in_features < MOST_PRODUCTS)
    torch.manual_seed(seed)
    weights = [PackedWeight.from_float(torch.randn(count, in_features), config) for count in out_features]
    x = torch.randn(rows, in_features, dtype=torch.bfloat16)
    kernel = EmulatedCuda(config, random.Random(seed).choice(DEVICES))
    for y, weight in zip(kernel.linear_group(x, weights, [None] * len(weights)), weights, strict=True):
        assert torch.equal(y, ReferenceKernel(config).linear(x, weight))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 12, 40])
def test_a_token_that_is_not_finite(config: BitQuantConfig, rows: int) -> None:
    weight = PackedWeight.from_float(torch.randn(70, 330), config)
    x = torch.randn(rows, 330)
    x[rows // 2, 329] = torch.inf
    y = EmulatedCuda(config, DEVICES[0]).linear(x, weight)
    assert torch.equal(y.isnan(), ReferenceKernel(config).linear(x, weight).isnan())


@pytest.mark.parametrize(
    ("rows", "out_features", "in_features"),
    [(392, 1504, 256), (280, 2000, 256), (200, 3008, 256), (70, 40, 2560), (16, 1500, 4096), (16, 5, 10240)],
)
def test_tiles_in_turns_and_shared(rows: int, out_features: int, in_features: int) -> None:
    """What six multiprocessors do with a call, and what many of them do."""
    config = BitQuantConfig()
    weight = PackedWeight.from_float(torch.randn(out_features, in_features), config)
    x = torch.randn(rows, in_features, dtype=torch.bfloat16)
    for device in DEVICES[:2]:
        assert torch.equal(EmulatedCuda(config, device).linear(x, weight), ReferenceKernel(config).linear(x, weight))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_tokens_of_floating_point_in_turns(dtype: torch.dtype) -> None:
    config = BitQuantConfig.weight_only()
    weight = PackedWeight.from_float(torch.randn(1600, 256), config)
    x = torch.randn(200, 256, dtype=dtype)
    y, expected = EmulatedCuda(config, DEVICES[1]).linear(x, weight), ReferenceKernel(config).linear(x, weight)
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.01)


def test_as_many_blocks_as_bring_two_to_the_32_bytes_nearer() -> None:
    config = BitQuantConfig()
    weight, x = PackedWeight.from_float(torch.randn(8, 16), config), torch.randn(2**15, 16, dtype=torch.bfloat16)
    y = EmulatedCuda(config, DEVICES[0]).linear(x, weight)
    assert torch.equal(y, ReferenceKernel(config).linear(x, weight))
