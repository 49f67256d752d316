"""What the CUDA kernels do between the products of a token, on an emulated GPU: norms, gated activations, attention."""

import math

import pytest
import torch
from emulated_cuda import DEVICES, DTYPES, EmulatedCuda, needs_library
from torch.nn import functional as F

from bitcore import BitQuantConfig
from bitcore.packed_weight import PackedWeight
from bitlayers.rotary import HalfRotary

pytestmark = needs_library
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
CONFIGS = {"2bit": BitQuantConfig(), "base3": BitQuantConfig(storage_format="base3"), "int4": BitQuantConfig.int4()}


@pytest.mark.parametrize("source", ["copy", "add", "relu2", "silu", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_norm_in_front_of_products(source: str, dtype: torch.dtype, config: BitQuantConfig) -> None:
    """The bits of norm and products one after the other."""
    kernel = EmulatedCuda(config, DEVICES[0])
    for rows, in_features in ((1, 640), (1, 2561), (1, 5120), (3, 320)):
        weights = [PackedWeight.from_float(torch.randn(count, in_features), config) for count in (40, 1)]
        x, other = (torch.randn(2, rows, in_features) * 3).to(dtype).unbind()
        second, norm = (None if source == "copy" else other), (torch.randn(in_features).to(dtype), 1e-5)
        normed = kernel.row_norm(source, x, second, norm)
        activation = {"relu2": lambda v: F.relu(v).square(), "silu": F.silu, "gelu": F.gelu}.get(source)
        values = x if source == "copy" else x + other if activation is None else activation(x) * other
        expected = F.rms_norm(values.double(), (in_features,), norm[0].double(), norm[1])
        torch.testing.assert_close(normed.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        outputs = kernel.normed_linear_group(source, x, second, norm, weights, [None, None])
        products = kernel.linear_group(normed, weights, [None, None])
        assert all(torch.equal(output, product) for output, product in zip(outputs, products, strict=False))
        assert source != "add" or torch.equal(outputs[2], x + other)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(20, 5, 128), (4, 4, 64), (9, 1, 16), (8, 2, 256)])
def test_attention_of_one_position(dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int) -> None:
    kernel = EmulatedCuda(BitQuantConfig(), DEVICES[0])
    for batch, room, past in ((1, 1, 0), (2, 40, 39), (1, 257, 130), (1, 1500, 1100)):
        q = torch.randn(batch, 1, heads * head_dim).to(dtype)
        k, v = torch.randn(2, batch, 1, kv_heads * head_dim).to(dtype).unbind()
        angles = torch.rand(1, head_dim // 2) * 6
        cos, sin = angles.cos(), angles.sin()
        rotary = HalfRotary(torch.cat([cos, cos], 1).to(dtype), torch.cat([-sin, sin], 1).to(dtype))
        keys, values = torch.full((2, batch, kv_heads, room, head_dim), math.nan).to(dtype).unbind()
        keys[:, :, :past] = torch.randn(batch, kv_heads, past, head_dim).to(dtype)
        values[:, :, :past] = torch.randn(batch, kv_heads, past, head_dim).to(dtype)
        position, arrivals = torch.tensor([past]), torch.zeros(batch * heads, dtype=torch.int32)
        y = kernel.attend_at(q, k, v, rotary.cos, rotary.sin, keys, values, position, arrivals)
        turned_q, turned_k = rotary(q.view(batch, heads, 1, head_dim), k.view(batch, kv_heads, 1, head_dim))
        assert torch.equal(keys[:, :, past : past + 1], turned_k)
        assert torch.equal(values[:, :, past], v.view(batch, kv_heads, head_dim))
        assert not arrivals.any()
        seen = keys[:, :, : past + 1].double(), values[:, :, : past + 1].double()
        expected = F.scaled_dot_product_attention(turned_q.double(), *seen, enable_gqa=True)
        torch.testing.assert_close(y.double(), expected.view(y.shape), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
