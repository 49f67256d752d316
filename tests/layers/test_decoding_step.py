"""One position with a cache: the operator that turns, caches and attends, against the steps that it stands for."""

import pytest
import torch
from torch import Tensor

from bitcore import extensions
from bitcore.exceptions import ShapeError
from bitlayers import BitAttention, KeyValueCache
from bitlayers.rotary import HalfRotary

pytestmark = pytest.mark.skipif(extensions.why_missing() is not None, reason=str(extensions.why_missing()))

ULPS = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def rotary_of(length: int, head_dim: int, dtype: torch.dtype) -> HalfRotary:
    angles = torch.rand(length, head_dim // 2) * 6
    cos, sin = angles.cos(), angles.sin()
    return HalfRotary(torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype))


def caches(attention: BitAttention, batch: int, past: int, dtype: torch.dtype) -> tuple[KeyValueCache, KeyValueCache]:
    sizes = (batch, attention.num_kv_heads, past + 3, attention.head_dim)
    first, second = KeyValueCache(*sizes, dtype=dtype), KeyValueCache(*sizes, dtype=dtype)
    old = torch.randn(2, batch, attention.num_kv_heads, past, attention.head_dim).to(dtype)
    for cache in (first, second):
        cache.append(old[0], old[1])
    return first, second


@pytest.mark.parametrize("dtype", ULPS, ids=str)
@pytest.mark.parametrize("sub_norm", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 16), (20, 5, 128), (3, 3, 2), (9, 1, 30)])
@torch.no_grad()
def test_a_step_is_what_its_parts_give(
    dtype: torch.dtype, sub_norm: bool, heads: int, kv_heads: int, head_dim: int
) -> None:
    attention = BitAttention(64, heads, kv_heads, head_dim, causal=True, sub_norm=sub_norm).to(dtype).eval()
    seen: list[Tensor] = []
    attention.o_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for batch, past in ((1, 0), (1, 7), (3, 40)):
        step, parts = caches(attention, batch, past, dtype)
        for _ in range(2):
            x, rotary = torch.randn(batch, 1, 64).to(dtype), rotary_of(1, head_dim, dtype)
            attention(x, rotary, cache=step)
            attention(x, rotary.__call__, cache=parts)  # no HalfRotary, so one by one
            torch.testing.assert_close(seen[-2], seen[-1], rtol=ULPS[dtype], atol=ULPS[dtype])
            assert step.length == parts.length
            torch.testing.assert_close(step.keys, parts.keys, rtol=ULPS[dtype], atol=ULPS[dtype] * 4)
            assert torch.equal(step.values, parts.values)


@torch.no_grad()
def test_a_full_cache_is_refused_and_stays_as_it_was() -> None:
    attention = BitAttention(32, 4, 2, causal=True).eval()
    cache = KeyValueCache(1, 2, 2, 8)
    for _ in range(2):
        attention(torch.randn(1, 1, 32), rotary_of(1, 8, torch.float32), cache=cache)
    keys = cache.keys.clone()
    with pytest.raises(ShapeError, match="the cache is full"):
        attention(torch.randn(1, 1, 32), rotary_of(1, 8, torch.float32), cache=cache)
    assert torch.equal(cache.keys, keys)
    assert cache.length == 2


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, torch.zeros(1, 2, 32)),
        (0, torch.zeros(1, 1, 24)),
        (0, torch.zeros(1, 1, 32).half()),
        (1, torch.zeros(1, 1, 8)),
        (2, torch.zeros(2, 1, 16)),
        (3, torch.zeros(1, 4)),
        (4, torch.zeros(1, 8).half()),
        (5, torch.zeros(1, 2, 3, 10)),
        (6, torch.zeros(1, 3, 3, 8)),
        (6, torch.zeros(1, 2, 1, 8)),
        (7, 3),
        (7, -1),
    ],
)
def test_arguments_that_do_not_fit_are_refused(place: int, value: object) -> None:
    cache = torch.zeros(1, 2, 3, 8)
    call: list[object] = [torch.zeros(1, 1, 32), torch.zeros(1, 1, 16), torch.zeros(1, 1, 16)]
    call += [torch.zeros(1, 8), torch.zeros(1, 8), cache.clone(), cache.clone(), 1]
    torch.ops.bitlab.attend_next(*call)
    call[place] = value
    with pytest.raises(RuntimeError, match="must"):
        torch.ops.bitlab.attend_next(*call)


def test_opcheck() -> None:
    keys, values = torch.randn(2, 2, 2, 5, 16).unbind()
    q, k, v = torch.randn(2, 1, 64), torch.randn(2, 1, 32), torch.randn(2, 1, 32)
    arguments = (q, k, v, torch.randn(1, 16), torch.randn(1, 16), keys, values, 3)
    torch.library.opcheck(torch.ops.bitlab.attend_next.default, arguments)
