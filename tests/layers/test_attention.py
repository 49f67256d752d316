"""BitAttention against its definition, its cache against attention without one."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bitcore import BitQuantConfig
from bitcore.exceptions import ArgumentError, DeviceError, DtypeError, ShapeError
from bitcore.kernels import BitKernelBase
from bitlayers import BitAttention, BitFeedForward, KeyValueCache, assert_deploy_equal, deploy

SIZES = [
    {"hidden_size": 24, "num_heads": 4},
    {"hidden_size": 24, "num_heads": 4, "num_kv_heads": 2, "bias": True},
    {"hidden_size": 20, "num_heads": 3, "num_kv_heads": 1, "head_dim": 8, "sub_norm": True},
]
every_size = pytest.mark.parametrize("sizes", SIZES, ids=str)


def rotate(start: int) -> object:
    """A rotary embedding of positions from `start` on, by complex numbers."""

    def rotary(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        half = q.shape[-1] // 2
        angles = torch.outer(torch.arange(start, start + q.shape[2]), 10.0 ** -torch.arange(half))
        turn = torch.polar(torch.ones_like(angles), angles)

        def turned(x: Tensor) -> Tensor:
            pairs = torch.view_as_complex(x.unflatten(-1, (half, 2)).contiguous())
            return torch.view_as_real(pairs * turn).flatten(-2)

        return turned(q), turned(k)

    return rotary


def definition(block: BitAttention, x: Tensor, rotary: object = None, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v, head by head."""
    q, k, v = (
        projection(x).unflatten(-1, (-1, block.head_dim)).transpose(1, 2)
        for projection in (block.q_proj, block.k_proj, block.v_proj)
    )
    if rotary is not None:
        q, k = rotary(q, k)  # type: ignore[operator]
    allowed = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
    allowed = allowed.tril() if block.causal else allowed
    if mask is not None:
        allowed = (allowed & mask).expand(x.shape[0], block.num_heads, -1, -1)
    else:
        allowed = allowed.expand(x.shape[0], block.num_heads, -1, -1)
    heads = []
    for head in range(block.num_heads):
        shared = head * block.num_kv_heads // block.num_heads
        scores = q[:, head] @ k[:, shared].transpose(1, 2) / block.head_dim**0.5
        heads.append(scores.masked_fill(~allowed[:, head], -torch.inf).softmax(-1) @ v[:, shared])
    y = torch.cat(heads, -1)
    if block.attn_sub_norm is not None:
        y = F.rms_norm(y, y.shape[-1:], block.attn_sub_norm.weight, block.attn_sub_norm.eps)
    return block.o_proj(y)


def weight_only(sizes: dict, **options: object) -> BitAttention:
    """With float activations, whose rounding cannot turn a small difference into a large one."""
    return BitAttention(**sizes, quant_config=BitQuantConfig.weight_only(), **options)


@every_size
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_is_its_definition(sizes: dict, causal: bool, training: bool) -> None:
    block = weight_only(sizes, causal=causal).train(training)
    x = torch.randn(2, 7, block.q_proj.in_features)
    torch.testing.assert_close(block(x), definition(block, x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block(x, rotate(0)), definition(block, x, rotate(0)), rtol=1e-4, atol=1e-4)
    mask = (torch.rand(2, 1, 1, 7) > 0.3) | torch.eye(7, dtype=torch.bool)
    expected = definition(block, x, mask=mask)
    torch.testing.assert_close(block(x, attention_mask=mask), expected, rtol=1e-4, atol=1e-4)
    additive = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(block(x, attention_mask=additive), expected, rtol=1e-4, atol=1e-4)


@every_size
@pytest.mark.parametrize("parts", [[7], [3, 1, 1, 2], [1] * 7], ids=str)
def test_a_cache_gives_what_attention_to_all_gives(sizes: dict, parts: list[int]) -> None:
    block = deploy(weight_only(sizes, causal=True))
    x = torch.randn(2, 7, block.q_proj.in_features)
    expected = block(x, rotate(0))
    cache = KeyValueCache(2, block.num_kv_heads, 9, block.head_dim)
    got = [block(part, rotate(cache.length), cache=cache) for part in x.split(parts, dim=1)]
    torch.testing.assert_close(torch.cat(got, 1), expected, rtol=1e-4, atol=1e-4)
    cache.reset()
    torch.testing.assert_close(block(x, rotate(0), cache=cache), expected, rtol=1e-4, atol=1e-4)


def test_padding_on_the_left_changes_nothing() -> None:
    block = deploy(weight_only(SIZES[1], causal=True))
    x = torch.randn(1, 5, 24)
    padded = torch.cat([torch.full((1, 2, 24), 9.0), x], 1)
    mask = torch.tensor([False, False, True, True, True, True, True])[None, None, None]
    cache = KeyValueCache(1, 2, 7, 6)
    first = block(padded[:, :6], attention_mask=mask[..., :6], cache=cache)
    last = block(padded[:, 6:], attention_mask=mask, cache=cache)
    assert first.isfinite().all()
    torch.testing.assert_close(torch.cat([first[:, 2:], last], 1), block(x), rtol=1e-4, atol=1e-4)


def test_a_cache_of_fixed_length_may_be_passed() -> None:
    """Static shapes, and the position as a tensor: what a CUDA graph needs."""

    class Fixed:
        def __init__(self) -> None:
            self.keys, self.values = torch.zeros(2, 1, 2, 9, 6)
            self.length = torch.zeros((), dtype=torch.long)

        def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            places = self.length + torch.arange(keys.shape[2])
            self.keys.index_copy_(2, places, keys)
            self.values.index_copy_(2, places, values)
            self.length = self.length + keys.shape[2]
            return self.keys, self.values

    block = deploy(weight_only(SIZES[1], causal=True))
    x, cache = torch.randn(1, 7, 24), Fixed()
    got = torch.cat([block(part, cache=cache) for part in x.split([4, 1, 2], dim=1)], 1)
    torch.testing.assert_close(got, block(x), rtol=1e-4, atol=1e-4)


@every_size
def test_deploys_to_the_same_bits(sizes: dict) -> None:
    block = BitAttention(**sizes, causal=True)
    x = torch.randn(2, 5, block.q_proj.in_features)
    assert_deploy_equal(block, {"x": x, "rotary": rotate(0)})
    assert_deploy_equal(block, (x, None, None, KeyValueCache(2, block.num_kv_heads, 8, block.head_dim)))


@torch.no_grad()
def test_projections_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    block = deploy(BitAttention(24, 4, num_kv_heads=2))
    sizes: list[int] = []
    kernel = type(block.q_proj.kernel)
    original = kernel.linear_group

    def watch(self: BitKernelBase, x: Tensor, weights: list, biases: list) -> list[Tensor]:
        sizes.append(len(weights))
        return original(self, x, weights, biases)

    monkeypatch.setattr(kernel, "linear_group", watch)
    block(torch.randn(1, 3, 24))
    assert sizes == [3]


def test_gradients_and_dropout() -> None:
    block = BitAttention(24, 4, dropout=0.5, sub_norm=True)
    x = torch.randn(2, 5, 24, requires_grad=True)
    y = block(x)
    assert not torch.equal(block(x), y)
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
    block.eval()
    assert torch.equal(block(x), block(x))


def test_the_cache_refuses_what_does_not_fit_and_stays_as_it_was() -> None:
    cache = KeyValueCache(2, 3, 4, 5)
    good = torch.randn(2, 3, 3, 5)
    assert all(torch.equal(held, good) for held in cache.append(good, good))
    assert (cache.max_length, cache.length) == (4, 3)
    cases = [
        (good, good, ShapeError, "the cache is full: 6 positions, expected at most max_length, 4"),
        (good[:1], good[:1], ShapeError, r"keys is of shape \[1, 3, 3, 5\], expected \[2, 3, new, 5\], as the cache"),
        (good[:, :, :1], good, ShapeError, "values is of shape"),
        (good[0], good[0], ShapeError, "keys is of shape"),
        (good.half(), good.half(), DtypeError, "keys is torch.float16, expected torch.float32, the cache's dtype"),
        (good.to("meta"), good.to("meta"), DeviceError, "keys is on meta"),
    ]
    for wrong_keys, wrong_values, error, message in cases:
        with pytest.raises(error, match=message):
            cache.append(wrong_keys, wrong_values)
        assert cache.length == 3
    with pytest.raises(ArgumentError, match=r"is \(2, 0, 4, 5\), expected 1 or more"):
        KeyValueCache(2, 0, 4, 5)


def test_wrong_sizes_and_inputs_are_named() -> None:
    with pytest.raises(ArgumentError, match="num_kv_heads is 3, expected a divisor of num_heads, 4"):
        BitAttention(24, 4, num_kv_heads=3)
    with pytest.raises(ArgumentError, match="hidden_size is 25, expected a multiple of num_heads, 4, or a head_dim"):
        BitAttention(25, 4)
    with pytest.raises(ArgumentError, match="dropout is 1"):
        BitAttention(24, 4, dropout=1)
    block = BitAttention(24, 4).eval()
    for causal in (True, False):
        block.causal = causal
        with pytest.raises(DtypeError, match=r"attention_mask is torch.int64, expected torch.bool or torch.float32"):
            block(torch.randn(1, 5, 24), attention_mask=torch.ones(5, dtype=torch.long))


@pytest.mark.parametrize("shape", [(7,), (3, 1, 5, 8), (1, 3, 5, 8), (4, 8), (1, 1, 1, 5, 8)])
def test_a_mask_of_another_shape_is_refused_and_leaves_the_cache_as_it_was(shape: tuple[int, ...]) -> None:
    block = BitAttention(24, 4, causal=True).eval()
    cache = KeyValueCache(2, 4, 16, 6)
    block(torch.randn(2, 3, 24), cache=cache)
    expected = r"expected one that broadcasts to \[2, 4, 5, 8\]: batch, num_heads, length, length of cache and x"
    with pytest.raises(ShapeError, match=expected):
        block(torch.randn(2, 5, 24), attention_mask=torch.ones(shape, dtype=torch.bool), cache=cache)
    assert cache.length == 3
    with pytest.raises(ShapeError, match=r"broadcasts to \[2, 4, 5, 5\]"):
        block(torch.randn(2, 5, 24), attention_mask=torch.ones(shape, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"x is of shape \[5, 24\], expected \[batch, length, 24\]"):
        block(torch.randn(5, 24))
    with pytest.raises(ShapeError, match=r"expected \[..., 24\]"):
        block(torch.randn(1, 5, 25))
    assert block(torch.randn(0, 5, 24)).shape == (0, 5, 24)


@torch.no_grad()
def test_compiles() -> None:
    attention, mlp = deploy(BitAttention(24, 4, causal=True)), deploy(BitFeedForward(24, 40, "relu2", sub_norm=True))
    x = torch.randn(2, 5, 24)

    def block(x: Tensor) -> Tensor:
        return mlp(x + attention(x, rotate(0)))

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), block(x))
