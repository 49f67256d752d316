"""Attention of one position on the compiled CPU kernels against its definition in float64."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bitcore import extensions
from bitcore.ops.attention import attend_one_position, serves_one_position

pytestmark = pytest.mark.skipif(extensions.why_missing() is not None, reason=str(extensions.why_missing()))

ERRORS = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def definition(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    group = q.shape[1] // keys.shape[1]
    keys, values = (tensor.double().repeat_interleave(group, 1) for tensor in (keys, values))
    scores = q.double() @ keys.transpose(2, 3) / math.sqrt(q.shape[3])
    return scores.softmax(-1) @ values


def assert_near(y: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert (y.dtype, y.shape) == (dtype, expected.shape)
    torch.testing.assert_close(y.double(), expected, rtol=ERRORS[dtype], atol=max(ERRORS[dtype] * 1e-2, 2e-6))


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("heads", "kv_heads"), [(20, 5), (1, 1), (6, 2), (9, 1), (24, 2)])
def test_equals_the_definition(dtype: torch.dtype, batch: int, heads: int, kv_heads: int) -> None:
    for head_dim, length in ((128, 129), (64, 1), (17, 5), (1, 3), (256, 40), (30, 700)):
        q = torch.randn(batch, heads, 1, head_dim).to(dtype)
        keys, values = torch.randn(2, batch, kv_heads, length, head_dim).to(dtype).unbind()
        assert_near(attend_one_position(q, keys, values), definition(q, keys, values), dtype)


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
def test_memory_laid_out_for_more_positions(dtype: torch.dtype) -> None:
    q = torch.randn(2, 1, 8, 32).to(dtype).transpose(1, 2)
    room = torch.randn(2, 2, 4, 90, 40).to(dtype)
    keys, values = room[0, :, :, 7:60, 3:35], room[1, :, :, 7:60, :32]
    assert_near(attend_one_position(q, keys, values), definition(q, keys, values), dtype)
    expanded = keys[:1, :1].expand(2, 4, 53, 32)
    assert_near(attend_one_position(q, expanded, values), definition(q, expanded, values), dtype)


def test_scores_of_every_size() -> None:
    q, keys, values = torch.randn(1, 4, 1, 64), torch.randn(1, 4, 50, 64), torch.randn(1, 4, 50, 64)
    for scale in (1e-30, 1e-3, 10.0, 1e4, 1e15):
        y, expected = attend_one_position(q * scale, keys, values), definition(q * scale, keys, values)
        # A score is off by 2**-24 of itself or so, and its weight by as much as that.
        torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-5 * max(1.0, min(scale, 1e3)))


def test_nan_stays_in_its_own_head() -> None:
    q, keys, values = torch.randn(1, 6, 1, 32), torch.randn(1, 3, 9, 32), torch.randn(1, 3, 9, 32)
    expected = definition(q, keys, values)
    for place in (0, 4, 8):
        spoilt = keys.clone()
        spoilt[0, 1, place, 5] = math.nan
        y = attend_one_position(q, spoilt, values)
        assert y[0, 2:4].isnan().all()
        others = [0, 1, 4, 5]
        assert_near(y[:, others], expected[:, others], torch.float32)


def test_threads_do_not_change_bits() -> None:
    q, keys, values = torch.randn(2, 20, 1, 128), torch.randn(2, 5, 300, 128), torch.randn(2, 5, 300, 128)
    threads = torch.get_num_threads()
    try:
        outputs = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outputs.append(attend_one_position(q, keys, values))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_it_is_as_near_as_pytorchs_own() -> None:
    q, keys, values = (torch.randn(1, heads, length, 64) for heads, length in ((8, 1), (8, 77), (8, 77)))
    exact = definition(q, keys, values)
    error = (attend_one_position(q, keys, values).double() - exact).abs().max()
    assert error <= 4 * (F.scaled_dot_product_attention(q, keys, values).double() - exact).abs().max() + 1e-7


def test_what_is_not_served() -> None:
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 3, 8)
    assert serves_one_position(q, k, k)
    assert not serves_one_position(torch.randn(1, 2, 2, 8), k, k)
    assert not serves_one_position(q.double(), k.double(), k.double())
    assert not serves_one_position(q.requires_grad_(), k, k)
    assert not serves_one_position(torch.randn(1, 2, 1, 8), torch.randn(1, 2, 8, 3).transpose(2, 3), k)
    assert not serves_one_position(torch.randn(1, 2, 1, 257), torch.randn(1, 2, 3, 257), torch.randn(1, 2, 3, 257))
    with torch.no_grad():
        assert serves_one_position(q, k, k)


@pytest.mark.parametrize(
    ("q", "keys", "values", "message"),
    [
        ((1, 2, 2, 8), (1, 2, 3, 8), (1, 2, 3, 8), "q must be"),
        ((2, 1, 8), (1, 2, 3, 8), (1, 2, 3, 8), "q must be"),
        ((1, 2, 1, 257), (1, 2, 3, 257), (1, 2, 3, 257), "q must be"),
        ((1, 2, 1, 8), (1, 2, 3, 9), (1, 2, 3, 8), "keys and values must be"),
        ((1, 2, 1, 8), (1, 2, 3, 8), (1, 2, 4, 8), "keys and values must be"),
        ((1, 2, 1, 8), (1, 2, 0, 8), (1, 2, 0, 8), "keys and values must be"),
        ((1, 3, 1, 8), (1, 2, 3, 8), (1, 2, 3, 8), "keys and values must be"),
        ((2, 2, 1, 8), (1, 2, 3, 8), (1, 2, 3, 8), "keys and values must be"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    q: tuple[int, ...], keys: tuple[int, ...], values: tuple[int, ...], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bitlab.attend_one(torch.zeros(q), torch.zeros(keys), torch.zeros(values))
    with pytest.raises(RuntimeError, match="keys and values must be"):
        half = torch.zeros(1, 2, 3, 8, dtype=torch.float16)
        torch.ops.bitlab.attend_one(torch.zeros(1, 2, 1, 8), half, half)


def test_opcheck() -> None:
    q = torch.randn(2, 4, 1, 16)
    keys, values = torch.randn(2, 2, 2, 5, 16).unbind()
    torch.library.opcheck(torch.ops.bitlab.attend_one.default, (q, keys, values))
