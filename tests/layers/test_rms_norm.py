"""rms_norm: the bits of nn.RMSNorm."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bitcore import extensions
from bitlayers.rms_norm import rms_norm

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@settings(max_examples=150)
@given(
    shape=st.lists(st.integers(1, 5), max_size=3),
    width=st.sampled_from([1, 2, 7, 16, 31, 129, 640, 2560, 6912, 33000]),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([0.0, 1e-30, 1e-6, 1.0, 1e3, 1e18]),
    eps=st.sampled_from([1e-5, 1e-6, 1e-12, 0.3]),
    seed=st.integers(0, 2**31),
)
def test_gives_the_bits_of_pytorchs_own(
    shape: list[int], width: int, dtype: torch.dtype, scale: float, eps: float, seed: int
) -> None:
    torch.manual_seed(seed)
    norm = nn.RMSNorm(width, eps=eps, dtype=dtype)
    with torch.no_grad():
        norm.weight.normal_()
        x = (torch.randn(*shape, width) * scale).to(dtype)
        y, expected = rms_norm(norm, x), norm(x)
    assert (y.shape, y.dtype) == (expected.shape, dtype)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())


@torch.no_grad()
def test_strides_and_many_rows() -> None:
    norm = nn.RMSNorm(96)
    norm.eps = 1e-5
    base = torch.randn(6, 50, 200)
    for x in (base[:, :, :96], base[::2, ::3, 5:101], base.transpose(0, 1)[..., :96], torch.randn(96, 30).T):
        assert torch.equal(rms_norm(norm, x), norm(x))


def test_gradients_hooks_and_other_norms_are_pytorchs() -> None:
    norm, x = nn.RMSNorm(8, eps=1e-5), torch.randn(3, 8, requires_grad=True)
    rms_norm(norm, x).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        for other in (nn.RMSNorm(8), nn.RMSNorm(8, eps=1e-5, elementwise_affine=False), nn.RMSNorm((3, 8), eps=1e-5)):
            assert torch.equal(rms_norm(other, x), other(x))
        seen: list[object] = []
        norm.register_forward_hook(lambda *_: seen.append(1))
        rms_norm(norm, x)
    assert seen == [1]


@torch.no_grad()
def test_a_norm_with_a_forward_of_its_own_is_called() -> None:
    """As libraries that keep weights elsewhere until a layer is called put one in."""
    norm, x = nn.RMSNorm(8, eps=1e-5), torch.randn(3, 8)
    expected, class_forward, weight = norm(x), norm.forward, norm.weight

    def with_weight(x: torch.Tensor) -> torch.Tensor:
        norm.weight = weight
        return class_forward(x)

    norm.weight = nn.Parameter(torch.empty(8, device="meta"))
    with pytest.raises(RuntimeError):
        rms_norm(norm, x)
    norm.forward = with_weight  # type: ignore[method-assign]
    assert torch.equal(rms_norm(norm, x), expected)


@pytest.mark.skipif(extensions.why_missing() is not None, reason=str(extensions.why_missing()))
def test_opcheck_and_arguments_that_do_not_fit() -> None:
    x, weight = torch.randn(2, 3, 8), torch.randn(8)
    torch.library.opcheck(torch.ops.bitlab.rms_norm.default, (x, weight, 1e-5))
    assert torch.ops.bitlab.rms_norm(x[:0], weight, 1e-5).shape == (0, 3, 8)
    for bad, message in (
        ((x.double(), weight), "x must be"),
        ((x[..., :0], weight[:0]), "x must be"),
        ((x.transpose(0, 1), weight), "x must be"),
        ((x, weight[:7]), "weight must be"),
        ((x, weight.half()), "weight must be"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.bitlab.rms_norm(*bad, 1e-5)
