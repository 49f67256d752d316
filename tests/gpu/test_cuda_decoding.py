"""The steps between the products of a token on CUDA GPUs, against PyTorch's operators and float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitcore.kernels.cuda import CudaKernel
from bitcore.ops import cuda_decoding
from bitlayers import BitFeedForward, relu_squared
from bitlayers.rms_norm import add_rms_norm, rms_norm
from bitlayers.rotary import HalfRotary

pytestmark = pytest.mark.skipif(
    CudaKernel.unavailable_reason() is not None, reason=str(CudaKernel.unavailable_reason())
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ULP = {torch.float32: 2.0**-20, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
WIDTHS = [1, 7, 8, 250, 2560, 6912, 8192, 8200, 32761, 32768]
FUNCTIONS = {"relu2": relu_squared, "silu": F.silu, "gelu": F.gelu}


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@torch.no_grad()
def test_norms_are_pytorchs_but_for_the_order_of_the_sum(dtype: torch.dtype, width: int) -> None:
    for shape, scale in (((width,), 1.0), ((3, 2, width), 1e-3), ((1, 1, width), 1e4)):
        norm = nn.RMSNorm(width, eps=1e-5, device="cuda", dtype=dtype)
        norm.weight.normal_()
        x, delta = randn(*shape, dtype=dtype) * scale, randn(*shape, dtype=dtype)
        tolerance = {"rtol": ULP[dtype], "atol": 0}
        torch.testing.assert_close(rms_norm(norm, x), norm(x), **tolerance)
        total, y = add_rms_norm(norm, x, delta)
        assert torch.equal(total, x + delta)
        torch.testing.assert_close(y, norm(x + delta), **tolerance)


@torch.no_grad()
def test_norms_of_what_is_not_finite_of_zeros_and_of_no_rows() -> None:
    norm = nn.RMSNorm(64, eps=1e-5, device="cuda")
    x = randn(5, 64)
    x[1, 3], x[2, 60], x[3] = torch.nan, torch.inf, 0
    y, expected = rms_norm(norm, x), norm(x)
    assert torch.equal(y.isnan(), expected.isnan())
    torch.testing.assert_close(y, expected, equal_nan=True)
    assert rms_norm(norm, x[:0]).shape == (0, 64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
@torch.no_grad()
def test_gated_activations_have_the_bits_of_pytorchs(dtype: torch.dtype, name: str) -> None:
    for width in WIDTHS:
        gate, up = (randn(3, width) * 4).to(dtype), randn(3, width, dtype=dtype)
        gate[0, 0], gate[1, 0], gate[2, 0] = torch.nan, torch.inf, -torch.inf
        y = cuda_decoding.gated_activation(gate, up, name, None, 0.0)
        expected = FUNCTIONS[name](gate) * up
        assert torch.equal(y.nan_to_num(7), expected.nan_to_num(7))


@torch.no_grad()
def test_a_block_gives_on_the_gpu_what_its_parts_give() -> None:
    for activation in ("relu2", "silu", "gelu"):
        block = BitFeedForward(64, 96, activation, sub_norm=True).cuda().bfloat16().eval()
        seen: list[Tensor] = []
        block.down_proj.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        x = randn(2, 5, 64, dtype=torch.bfloat16)
        block(x)
        assert block.gate_proj is not None
        parts = block.ffn_sub_norm(FUNCTIONS[activation](block.gate_proj(x)) * block.up_proj(x))
        torch.testing.assert_close(seen[0], parts, rtol=ULP[torch.bfloat16], atol=0)


@torch.no_grad()
def attention_in_float64(q: Tensor, k: Tensor, v: Tensor, rotary: HalfRotary, keys: Tensor, values: Tensor) -> Tensor:
    """Of one position to the `keys` and `values` before it; only the turned q and k are rounded."""
    batch, _, _, head_dim = keys.shape
    q, k, v = (x.reshape(batch, -1, 1, head_dim) for x in (q, k, v))
    q, k = rotary(q, k)
    keys, values = torch.cat([keys, k], 2).double(), torch.cat([values, v], 2).double()
    return F.scaled_dot_product_attention(q.double(), keys, values, enable_gqa=True)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(20, 5, 128), (4, 4, 64), (9, 1, 16), (6, 2, 96), (8, 2, 256)]
)
@torch.no_grad()
def test_attention_of_one_position(dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int) -> None:
    for batch, room, past in ((1, 1, 0), (2, 40, 0), (1, 40, 39), (3, 257, 130), (1, 5000, 4093), (1, 70000, 31)):
        q = randn(batch, 1, heads * head_dim, dtype=dtype)
        k, v = randn(2, batch, 1, kv_heads * head_dim, dtype=dtype).unbind()
        angles = torch.rand(1, head_dim // 2, device="cuda") * 6
        cos, sin = angles.cos(), angles.sin()
        rotary = HalfRotary(torch.cat([cos, cos], 1).to(dtype), torch.cat([-sin, sin], 1).to(dtype))
        keys, values = torch.full((2, batch, kv_heads, room, head_dim), torch.nan, device="cuda").to(dtype).unbind()
        keys[:, :, :past] = randn(batch, kv_heads, past, head_dim, dtype=dtype)
        values[:, :, :past] = randn(batch, kv_heads, past, head_dim, dtype=dtype)
        expected = attention_in_float64(q, k, v, rotary, keys[:, :, :past], values[:, :, :past])
        position = torch.tensor([past], device="cuda")
        arrivals = torch.zeros(batch * heads, dtype=torch.int32, device="cuda")
        arguments = (q, k, v, rotary.cos, rotary.sin, keys, values, position, arrivals)
        y = cuda_decoding.attend_at(*arguments)
        error = (y.double() - expected.reshape(y.shape)).abs().max()
        assert error < ULP[dtype] * expected.abs().max()
        turned = rotary(q.reshape(batch, heads, 1, head_dim), k.reshape(batch, kv_heads, 1, head_dim))[1]
        assert torch.equal(keys[:, :, past : past + 1], turned)
        assert torch.equal(values[:, :, past], v.reshape(batch, kv_heads, head_dim))
        assert not arrivals.any()
        assert torch.equal(y, cuda_decoding.attend_at(*arguments))  # from run to run the same bits


def call_arguments() -> list[Tensor]:
    half = {"device": "cuda", "dtype": torch.bfloat16}
    q, k, v = torch.randn(2, 1, 64, **half), torch.randn(2, 1, 32, **half), torch.randn(2, 1, 32, **half)
    cache = torch.randn(2, 2, 2, 5, 16, **half)
    rotary = torch.randn(2, 1, 16, **half)
    position = torch.tensor([3], device="cuda")
    return [q, k, v, *rotary.unbind(), *cache.unbind(), position, torch.zeros(8, dtype=torch.int32, device="cuda")]


@pytest.mark.parametrize(
    ("place", "change"),
    [
        (0, lambda x: x.float()),
        (0, lambda x: x.cpu()),
        (0, lambda x: x[..., :48]),
        (1, lambda x: x[:1]),
        (2, lambda x: x.half()),
        (3, lambda x: x[..., :8]),
        (4, lambda x: x.expand(2, 16)),
        (5, lambda x: x[..., :8]),
        (6, lambda x: x.transpose(0, 1)),
        (6, lambda x: x[:, :, :4]),
        (7, lambda x: x.int()),
        (7, lambda x: x.cpu()),
        (8, lambda x: x[:7]),
    ],
)
def test_arguments_that_do_not_fit_are_refused(place: int, change: object) -> None:
    arguments = call_arguments()
    torch.ops.bitlab.attend_at(*arguments)
    arguments[place] = change(arguments[place])  # type: ignore[operator]
    with pytest.raises((RuntimeError, NotImplementedError), match=r"must|CPU"):
        torch.ops.bitlab.attend_at(*arguments)


@torch.no_grad()
def test_a_position_outside_the_cache_reads_and_writes_nothing_else() -> None:
    for position in (-4, 5, 2**40):
        arguments = call_arguments()
        memory = torch.randn(3, 2, 2, 5, 16, device="cuda").bfloat16()
        before, arguments[5] = memory.clone(), memory[1]
        arguments[7] = torch.tensor([position], device="cuda")
        torch.ops.bitlab.attend_at(*arguments)
        assert torch.equal(memory[0], before[0])
        assert torch.equal(memory[2], before[2])


def test_opcheck() -> None:
    x, weight = randn(3, 64), randn(64)
    for operator, arguments in (
        (torch.ops.bitlab.rms_norm.default, (x, weight, 1e-5)),
        (torch.ops.bitlab.add_rms_norm.default, (x, randn(3, 64), weight, 1e-5)),
        (torch.ops.bitlab.gated_activation.default, (x, randn(3, 64), weight, 1e-5, 1)),
        (torch.ops.bitlab.attend_at.default, tuple(call_arguments())),
    ):
        torch.library.opcheck(operator, arguments)


def test_a_failed_argument_says_what_was_expected() -> None:
    x, weight = randn(3, 64), randn(64)
    for bad, message in (
        ((x.double(), weight), "x must be"),
        ((x.T, weight), "x must be"),
        ((x, weight[:63]), "weight must be"),
        ((x, weight.half()), "weight must be"),
        ((x, weight.cpu()), "weight must be"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.bitlab.rms_norm(*bad, 1e-5)
    with pytest.raises(RuntimeError, match="second tensor"):
        torch.ops.bitlab.add_rms_norm(x, x[:2], weight, 1e-5)
    with pytest.raises(RuntimeError, match="activation must"):
        torch.ops.bitlab.gated_activation(x, x, None, 0.0, 3)
