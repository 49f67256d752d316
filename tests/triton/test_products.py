"""Every kind of tile against the reference, bit for bit: on a GPU, or on the CPU with TRITON_INTERPRET=1."""

import pytest
import torch

from bitcore import BitQuantConfig
from bitcore.kernels.compiled import operator_mode
from bitcore.kernels.reference import ReferenceKernel
from bitcore.kernels.triton import INTERPRETED, TritonKernel
from bitcore.packed_weight import PackedWeight

REASON = TritonKernel.unavailable_reason()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"{REASON}; `make test-triton` runs it on the CPU")
DEVICE = "cpu" if INTERPRETED else "cuda"

PER_GROUP = {"weight_granularity": "per_group"}
WHOLE_ROWS = [
    BitQuantConfig(),
    BitQuantConfig(weight_granularity="per_channel", activation_granularity="per_tensor"),
    BitQuantConfig(storage_format="base3", weight_granularity="per_channel"),
    BitQuantConfig(weight_dtype="int4", weight_quantizer="minmax", weight_granularity="per_channel"),
    BitQuantConfig(weight_dtype="int4", weight_quantizer="minmax", weight_granularity="per_tensor"),
]
GROUPED = [
    BitQuantConfig(group_size=32, **PER_GROUP),
    BitQuantConfig(group_size=128, **PER_GROUP),
    BitQuantConfig(storage_format="base3", group_size=160, **PER_GROUP),
    BitQuantConfig(weight_dtype="int4", weight_quantizer="minmax", group_size=96, **PER_GROUP),
]
# Sizes of Tile: one slice and more, tiles wider and narrower than what is computed, and boxes, of rows of 640 and 2,560
# weights.
TILES = [
    (8, 16, 4, 64, 4, 3),
    (16, 32, 2, 128, 4, 3),
    (64, 64, 1, 32, 4, 3),
    (128, 128, 1, 64, 4, 3),
    (8, 32, 4, 32, 4, 3, 2),
    (16, 64, 1, 32, 4, 3, 1),
    (64, 64, 1, 32, 4, 3, 2),
]


def random_weight(rows: int, columns: int, config: BitQuantConfig) -> PackedWeight:
    return PackedWeight.from_float(torch.randn(rows, columns, device=DEVICE), config)


def check(config: BitQuantConfig, rows: int, weight: PackedWeight, tile: object, dtype: torch.dtype) -> None:
    from bitcore.kernels.triton.launch import Call, launch
    from bitcore.kernels.triton.operator import read_mode

    out_features = weight.packed.shape[0]
    x = torch.randn(rows, weight.in_features, device=DEVICE).to(dtype)
    x[rows // 2, -1] = torch.inf
    bias = torch.randn(out_features, device=DEVICE)
    y = x.new_full((rows, out_features), 7.0)
    mode = read_mode(operator_mode(config))
    launch(Call(x, weight.packed, weight.scale, weight.zero_point, bias, y, *mode), tile)
    expected = ReferenceKernel(config).linear(x, weight, bias)
    assert ((y == expected) | (y.isnan() & expected.isnan())).all()


@pytest.mark.parametrize("config", WHOLE_ROWS, ids=str)
@pytest.mark.parametrize("sizes", TILES, ids=str)
def test_tiles_of_whole_rows(config: BitQuantConfig, sizes: tuple[int, ...]) -> None:
    from bitcore.kernels.triton.tiles import Tile

    # The third is arranged in two steps, the last one is too long to stay in registers.
    for rows, out_features, in_features in ((1, 17, 2560), (19, 130, 321), (130, 70, 640), (2, 5, 16500)):
        check(config, rows, random_weight(out_features, in_features, config), Tile(*sizes), torch.float32)


@pytest.mark.parametrize("config", GROUPED, ids=str)
def test_groups(config: BitQuantConfig) -> None:
    from bitcore.kernels.triton.tiles import Tile

    for rows, out_features, in_features in ((1, 17, 640), (19, 130, 321)):
        check(config, rows, random_weight(out_features, in_features, config), Tile(32, 64, 1, 32, 4, 3), torch.float16)


@pytest.mark.parametrize("config", WHOLE_ROWS, ids=str)
@pytest.mark.parametrize("sizes", [(4, 4, 2, 128), (32, 8, 1, 32)], ids=str)
def test_one_token_in_one_launch(config: BitQuantConfig, sizes: tuple[int, ...]) -> None:
    from bitcore.kernels.triton.tiles import GemvTile

    # 957: words that are not full; 4 rows of a byte or two, and 300 that start at any byte
    for out_features, in_features in ((1, 640), (70, 320), (300, 957), (4, 5), (300, 333)):
        check(config, 1, random_weight(out_features, in_features, config), GemvTile(*sizes), torch.float32)


@pytest.mark.parametrize("storage_format", ["2bit", "base3", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_floating_point_activations(storage_format: str, dtype: torch.dtype) -> None:
    weights = {"weight_dtype": "int4"} if storage_format == "int4" else {"storage_format": storage_format}
    config = BitQuantConfig(activation_dtype="float32", weight_granularity="per_channel", **weights)
    weight = random_weight(70, 645, config)
    for rows in (1, 19, 70):
        x = torch.randn(rows, 645, device=DEVICE).to(dtype)
        y = TritonKernel(config).linear(x, weight)
        weights = weight.values(config).double() * weight.scale.double().unsqueeze(1)
        exact, magnitude = x.double() @ weights.T, x.double().abs() @ weights.abs().T
        # Products added one after the other in float32: one sum in some 60,000 is 2**-22 of the magnitude off.
        tolerance = 2**-21 * magnitude + (2**-11 * exact.abs() if dtype == torch.float16 else 0)
        assert ((y.double() - exact).abs() <= tolerance).all()


@pytest.mark.parametrize("config", [*WHOLE_ROWS, GROUPED[0], BitQuantConfig.weight_only()], ids=str)
def test_a_norm_in_front(config: BitQuantConfig) -> None:
    """Where it is fused, by one warp a token and by several, and where it is not."""
    from bitcore.kernels.triton.launch import Norm, normalize

    kernel = TritonKernel(config)
    for rows, in_features in ((1, 640), (5, 1280), (260, 160)):
        weight = random_weight(20, in_features, config)
        x = 3 * torch.randn(rows, in_features, device=DEVICE)
        norm_weight = torch.randn(in_features, device=DEVICE)
        normed = normalize(x, Norm(norm_weight, 1e-5))
        exact = x.double() * (x.double().square().mean(1, keepdim=True) + 1e-5).rsqrt() * norm_weight.double()
        assert ((normed.double() - exact).abs() <= 2**-21 * exact.abs()).all()
        assert torch.equal(kernel.normed_linear(x, norm_weight, 1e-5, weight), kernel.linear(normed, weight))


@pytest.mark.parametrize("in_features", [1, 3, 64])
def test_a_norm_whose_scale_is_infinite(in_features: int) -> None:
    """What is behind the end of a token stays 0."""
    config = BitQuantConfig.weight_only()
    weight = PackedWeight.from_float(torch.ones(4, in_features, device=DEVICE), config)
    x, norm_weight = 1e-25 * (1 + torch.rand(3, in_features, device=DEVICE)), torch.ones(in_features, device=DEVICE)
    assert TritonKernel(config).normed_linear(x, norm_weight, 0.0, weight).isposinf().all()


def test_a_norm_of_tokens_that_do_not_stay_in_registers() -> None:
    kernel = TritonKernel(BitQuantConfig())
    weight, norm_weight = random_weight(3, 16500, BitQuantConfig()), torch.randn(16500, device=DEVICE)
    x = torch.randn(2, 16500, device=DEVICE)
    x[1, 7] = torch.nan
    y = kernel.normed_linear(x, norm_weight, 1e-5, weight)
    normed = torch.nn.functional.rms_norm(x[:1], (16500,), norm_weight, 1e-5)
    assert torch.equal(y[:1], kernel.linear(normed, weight))
    assert y[1].isnan().all()


def test_extreme_values_do_not_saturate() -> None:
    config = BitQuantConfig()
    for rows in (1, 5):
        for sign in (-1.0, 1.0):
            weight = PackedWeight.from_float(torch.full((3, 8192), sign, device=DEVICE), config)
            x = torch.full((rows, 8192), 3.7, device=DEVICE)
            assert torch.equal(TritonKernel(config).linear(x, weight), ReferenceKernel(config).linear(x, weight))
