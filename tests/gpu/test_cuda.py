"""The CUDA kernels on sizes, values and addresses that only a GPU can take. tests/kernels holds the rest.

`make test-gpu` builds the extension and runs both.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bitcore import BitQuantConfig
from bitcore.kernels import BitKernelBase, KernelRegistry
from bitcore.kernels.reference import ReferenceKernel
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import dequantize

REASON = KernelRegistry._kernels["cuda"].unavailable_reason()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"the CUDA kernels cannot run here: {REASON}")

CONFIGS = {
    "2bit": BitQuantConfig(),
    "base3": BitQuantConfig(storage_format="base3", weight_granularity="per_channel"),
    "int4": BitQuantConfig(weight_dtype="int4", weight_granularity="per_channel", weight_quantizer="minmax"),
    "per_tensor": BitQuantConfig.int8_per_tensor(),
    "groups": BitQuantConfig(weight_granularity="per_group", group_size=128),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
ROWS = (1, 2, 3, 5, 12, 40, 300)  # one for each path


def cuda_kernel(config: BitQuantConfig) -> BitKernelBase:
    return KernelRegistry._kernels["cuda"](config)


def random_weight(rows: int, columns: int, config: BitQuantConfig, device: str = "cuda") -> PackedWeight:
    return PackedWeight.from_float(torch.randn(rows, columns, device=device), config)


def same(y: Tensor, expected: Tensor) -> bool:
    return y.dtype == expected.dtype and bool(((y == expected) | (y.isnan() & expected.isnan())).all())


def check_with_and_without_bias(config: BitQuantConfig, weight: PackedWeight, x: Tensor) -> None:
    """The bias is of float32."""
    for bias in (None, torch.randn(weight.packed.shape[0], device="cuda")):
        y, expected = (kernel(config).linear(x, weight, bias) for kernel in (cuda_kernel, ReferenceKernel))
        assert same(y, expected)


@every_config
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", [(2560, 2560), (520, 2048), (300, 11008), (1001, 1283)], ids=str)
def test_large_layers_equal_the_reference(config: BitQuantConfig, dtype: torch.dtype, sizes: tuple[int, int]) -> None:
    weight = random_weight(*sizes, config)
    bias = torch.randn(sizes[0], device="cuda", dtype=dtype)
    kernel, reference = cuda_kernel(config), ReferenceKernel(config)
    for rows in (1, 2, 3, 4, 8, 16, 17, 33, 64, 65, 128, 129, 500, 1030):
        x = torch.randn(rows, sizes[1], device="cuda").to(dtype)
        x[rows // 2, 7] = 50.0
        assert same(kernel.linear(x, weight, bias), reference.linear(x, weight, bias)), rows


@pytest.mark.parametrize("storage_format", ["2bit", "base3"])
@pytest.mark.parametrize("sizes", [(11003, 4096), (9001, 4080), (8720, 8192), (4300, 12288)], ids=str)
def test_few_tokens_of_many_tiles(sizes: tuple[int, int], storage_format: str) -> None:
    """Every group of warps takes several tiles of rows, and the last one is not full."""
    config = BitQuantConfig(storage_format=storage_format, weight_granularity="per_channel")
    weight, bias = random_weight(*sizes, config), torch.randn(sizes[0], device="cuda")
    for rows in (1, 2, 3, 4, 8, 16):
        x = torch.randn(rows, sizes[1], device="cuda", dtype=torch.bfloat16)
        x[rows // 2, 7] = 50.0
        assert same(cuda_kernel(config).linear(x, weight, bias), ReferenceKernel(config).linear(x, weight, bias)), rows


@pytest.mark.parametrize(("sizes", "rows"), [((2560, 6912), 4096), ((8, 16), 32768)], ids=str)
def test_many_tokens_of_few_weights(sizes: tuple[int, int], rows: int) -> None:
    """Their blocks, all together, bring weights nearer in steps of 2**32 bytes."""
    config = BitQuantConfig()
    x = torch.randn(rows, sizes[1], device="cuda", dtype=torch.bfloat16)
    weight = random_weight(*sizes, config)
    assert same(cuda_kernel(config).linear(x, weight), ReferenceKernel(config).linear(x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("in_features", [3, 641, 1270, 2563, 4700, 6404, 8192, 10238, 10244, 11008, 14803, 20000])
def test_one_token_of_rows_that_start_at_any_byte(in_features: int, dtype: torch.dtype) -> None:
    config = CONFIGS["base3"]
    floating = cuda_kernel(config.model_copy(update={"activation_dtype": "float32"}))
    for out_features in (1, 7, 2400, 9001):
        weight = random_weight(out_features, in_features, config)
        x = torch.randn(2, in_features, device="cuda").to(dtype)
        check_with_and_without_bias(config, weight, x[1:])
        assert same(floating.linear(x, weight)[1:], floating.linear(x[1:], weight))  # three digits, by other kernels
        x[1, -1] = torch.inf
        assert cuda_kernel(config).linear(x[1:], weight).isnan().all()
        assert floating.linear(x[1:], weight).isnan().all()


@pytest.mark.parametrize("config", [CONFIGS["2bit"], CONFIGS["base3"], CONFIGS["int4"]], ids=["2bit", "base3", "int4"])
@pytest.mark.parametrize("sizes", [(17000, 320), (17003, 1037)], ids=str)
def test_few_tokens_of_more_tiles_than_multiprocessors(sizes: tuple[int, int], config: BitQuantConfig) -> None:
    """Tiles of 16 columns, which fewer rows of weights never take."""
    weight, bias = random_weight(*sizes, config), torch.randn(sizes[0], device="cuda")
    for rows in (9, 12, 16):
        x = torch.randn(rows, sizes[1], device="cuda").half()
        x[rows // 2, 7] = 50.0
        assert same(cuda_kernel(config).linear(x, weight, bias), ReferenceKernel(config).linear(x, weight, bias)), rows
    config = BitQuantConfig.weight_only()
    weight = random_weight(*sizes, config)
    x = torch.randn(5, sizes[1], device="cuda").half()
    together, alone = cuda_kernel(config).linear(x, weight), [cuda_kernel(config).linear(row, weight) for row in x]
    assert same(together, torch.stack(alone))


@pytest.mark.parametrize("rows", [33, 40, 64, 96, 120])
@pytest.mark.parametrize("sizes", [(1024, 8192), (333, 4099), (2560, 6912), (640, 28672)], ids=str)
def test_blocks_that_share_long_rows(sizes: tuple[int, int], rows: int) -> None:
    """Up to eight blocks add their sums up: outputs of 2 and 4 bytes, with and without bias."""
    config = BitQuantConfig(weight_granularity="per_channel")
    weight = random_weight(*sizes, config)
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(rows, sizes[1], device="cuda").to(dtype)
        check_with_and_without_bias(config, weight, x)


# Of each number of columns, with two warpgroups and with three: tiles that blocks have alone, and that blocks share of
# which each writes 8, 16, 24 or 32 columns, as an H200 cuts them. Neither tokens nor rows fill the last tile.
SHARED_TILES = [
    ((160, 128), 5),
    ((152, 320), 5),
    ((18672, 64), 5),
    ((8560, 1984), 5),
    ((8944, 64), 17),
    ((2600, 2112), 18),
    ((4296, 1088), 20),
    ((17736, 64), 17),
    ((2872, 8192), 17),
    ((10312, 4032), 17),
    ((9048, 64), 33),
    ((1712, 4096), 35),
    ((2904, 1984), 36),
    ((5208, 2112), 33),
    ((8896, 64), 49),
    ((1584, 9600), 55),
    ((2448, 4480), 57),
    ((4392, 1984), 50),
    ((17048, 64), 33),
    ((2848, 16384), 49),
    ((5224, 8192), 49),
    ((10184, 4480), 49),
    ((17048, 64), 49),
    ((22008, 512), 30),
    ((22008, 512), 60),
]


# What an H200 cuts into blocks of two warpgroups that have a multiprocessor each, and into blocks of three, whose last
# tile of rows is not full; those of 16 tokens share K.
FEW_COLUMNS = [
    ((11003, 4096), 16),
    ((11003, 4096), 32),
    ((11003, 4096), 46),
    ((11003, 4096), 60),
    ((2563, 2560), 33),
    ((2563, 2560), 128),
    ((2563, 2560), 250),
    ((9001, 512), 100),
    ((12003, 448), 128),
    ((8205, 8192), 192),
]


@pytest.mark.parametrize(("sizes", "rows"), FEW_COLUMNS, ids=str)
def test_blocks_alone_and_of_three_warpgroups(sizes: tuple[int, int], rows: int) -> None:
    config = BitQuantConfig(weight_granularity="per_channel")
    weight = random_weight(*sizes, config)
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(rows, sizes[1], device="cuda").to(dtype)
        x[rows // 2, 7] = 50.0
        check_with_and_without_bias(config, weight, x)
    config = BitQuantConfig.weight_only()
    kernel, weight = cuda_kernel(config), random_weight(*sizes, config)
    x = torch.randn((rows + 2) // 3, sizes[1], device="cuda")  # as many columns of their digits
    assert same(kernel.linear(x, weight), torch.stack([kernel.linear(row, weight) for row in x]))


# One, two, three and more tiles for each multiprocessor of an H200, what is left over in narrower ones or not; and no
# more tiles than it has.
IN_TURNS = [
    ((5000, 512), 1024),
    ((12801, 320), 1000),
    ((11008, 1088), 1024),
    ((2560, 2560), 4096),
    ((13501, 256), 272),
    ((13500, 256), 392),
    ((15500, 1088), 392),
    ((25503, 1088), 312),
    ((14500, 2048), 432),
    ((8704, 512), 200),
    ((8704, 512), 280),
    ((11008, 4096), 256),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("sizes", "rows"), SHARED_TILES + IN_TURNS, ids=str)
def test_tiles_shared_and_in_turns(sizes: tuple[int, int], rows: int, dtype: torch.dtype) -> None:
    config = BitQuantConfig(weight_granularity="per_channel")
    weight = random_weight(*sizes, config)
    x = torch.randn(rows, sizes[1], device="cuda").to(dtype)
    x[rows // 2, 7] = 50.0
    check_with_and_without_bias(config, weight, x)


@every_config
@pytest.mark.parametrize("sizes", [(200, 9000), (40, 65536), (40, 65664)], ids=str)
def test_all_extreme_values(config: BitQuantConfig, sizes: tuple[int, int]) -> None:
    """Also the longest rows whose sums of scaled codes fit 32 bits, and longer ones, which another kernel serves."""
    kernel, reference = cuda_kernel(config), ReferenceKernel(config)
    weight = random_weight(*sizes, config)
    code = {"2bit": 0b10101010, "base3": 255, "int4": 255}[
        config.storage_format if config.weight_dtype == "ternary" else "int4"
    ]
    for fill in (code, 0):
        packed = weight.packed.fill_(fill)
        for rows in (1, 5, 12, 40, 300):
            for sign in (1.0, -1.0):
                x = torch.full((rows, sizes[1]), sign, device="cuda")
                extreme = weight._replace(packed=packed)
                assert same(kernel.linear(x, extreme), reference.linear(x, extreme))


@every_config
@pytest.mark.parametrize("in_features", [700, 704])
@pytest.mark.parametrize("rows", ROWS)
def test_not_finite_rows_are_those_of_the_reference(config: BitQuantConfig, in_features: int, rows: int) -> None:
    weight = random_weight(130, in_features, config)
    for bad in (torch.nan, torch.inf, -torch.inf):
        x = torch.randn(rows, in_features, device="cuda", dtype=torch.bfloat16)
        x[rows // 2, -1] = bad
        assert same(cuda_kernel(config).linear(x, weight), ReferenceKernel(config).linear(x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("in_features", [1280, 8960])
def test_floating_point_activations_equal_the_cpu_kernels(in_features: int, rows: int, dtype: torch.dtype) -> None:
    """The same three int8 digits: bit for bit, and run to run. Many tokens of two bytes are another matter."""
    for config in (BitQuantConfig.weight_only(), BitQuantConfig.int4(128)):
        if config.weight_dtype == "ternary" and rows > 100 and dtype != torch.float32:
            continue
        weight = random_weight(300, in_features, config, "cpu")
        x = torch.randn(rows, in_features, dtype=dtype)
        expected = KernelRegistry.get_kernel_for_config(config, "cpu", dtype).linear(x, weight)
        on_gpu = PackedWeight(weight.packed.cuda(), weight.scale.cuda(), None, weight.in_features)
        for _ in range(3):
            assert same(cuda_kernel(config).linear(x.cuda(), on_gpu).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("storage_format", ["2bit", "base3"])
@pytest.mark.parametrize(
    "sizes", [(1, 1), (129, 203), (300, 1283), (640, 2560), (257, 5120), (8500, 256), (23001, 320)], ids=str
)
def test_many_floating_point_tokens_lose_no_more_than_f_linear(
    sizes: tuple[int, int], storage_format: str, dtype: torch.dtype
) -> None:
    """Against float64, and the same bits run to run."""
    config = BitQuantConfig(activation_dtype="float32", storage_format=storage_format, weight_granularity="per_channel")
    weight = random_weight(*sizes, config)
    dense = dequantize(weight.values(config), weight.scale, None, config)
    bias = torch.randn(sizes[0], device="cuda").to(dtype)
    for rows in (192, 193, 300, 1025):
        x = torch.randn(rows, sizes[1], device="cuda").to(dtype)
        x[3] *= 10
        exact = x.double() @ dense.double().T + bias.double()
        y = cuda_kernel(config).linear(x, weight, bias)
        error = (y.double() - exact).norm()
        assert error <= 1.05 * (F.linear(x, dense.to(dtype), bias).double() - exact).norm() + 1e-6 * exact.norm()
        assert same(cuda_kernel(config).linear(x, weight, bias), y)
        x[5, 0] = torch.nan
        assert cuda_kernel(config).linear(x, weight).isnan().any(1).nonzero().tolist() == [[5]]


def test_many_floating_point_tokens_wherever_they_lie() -> None:
    """Rows that start at multiples of 16 bytes are read where they are; others are arranged first."""
    kernel = cuda_kernel(BitQuantConfig(activation_dtype="float32", weight_granularity="per_channel"))
    weight = random_weight(9000, 1024, kernel.config)  # enough tiles for an H200
    base = torch.randn(1000, 1040, device="cuda", dtype=torch.bfloat16)
    for first in (0, 8, 3):
        x = base[:, first : first + 1024]
        y, expected = kernel.linear(x, weight), kernel.linear(x.contiguous(), weight)
        if first % 8 == 0:
            assert same(y, expected)
        torch.testing.assert_close(y, expected, rtol=0.02, atol=0.01)


@every_config
def test_memory_that_is_not_aligned(config: BitQuantConfig) -> None:
    kernel, reference = cuda_kernel(config), ReferenceKernel(config)
    weight = random_weight(257, 1024, config)
    flat = torch.empty(weight.packed.numel() + 3, dtype=torch.uint8, device="cuda")
    shifted = weight._replace(packed=flat[3:].view_as(weight.packed).copy_(weight.packed))
    for rows in ROWS:
        base = torch.randn(rows * 1030 + 1, device="cuda", dtype=torch.bfloat16)
        x = base[1:].view(rows, 1030)[:, 3:1027]
        expected = reference.linear(x, weight)
        assert same(kernel.linear(x, shifted), expected)
        assert same(kernel.linear(x.contiguous(), shifted), expected)
        part = weight._replace(
            packed=weight.packed[1:], scale=weight.scale[1:] if len(weight.scale) > 1 else weight.scale
        )
        if weight.zero_point is not None:
            part = part._replace(zero_point=weight.zero_point[1:])
        assert same(kernel.linear(x, part), expected[:, 1:])


def test_more_than_two_to_the_31_outputs() -> None:
    config = BitQuantConfig()
    rows, out_features = 300_000, 8192
    weight = random_weight(out_features, 64, config)
    x = torch.randn(rows, 64, device="cuda", dtype=torch.bfloat16)
    y = cuda_kernel(config).linear(x, weight)
    assert y.numel() > 2**31
    for part in (slice(0, 50), slice(150_000, 150_050), slice(rows - 50, rows)):
        assert same(y[part], ReferenceKernel(config).linear(x[part], weight))
