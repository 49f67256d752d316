"""Layers on a GPU: what they hand to the CUDA kernels, alone and in groups."""

import pytest
import torch
from test_cuda import ROWS, same

from bitcore import BitQuantConfig
from bitcore.kernels.cuda import CudaKernel
from bitlayers import BitLinear
from bitlayers.linear_group import linear_group

UNAVAILABLE = CudaKernel.unavailable_reason()
pytestmark = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))


@pytest.mark.parametrize("rows", ROWS)
def test_a_layer_with_a_norm(rows: int) -> None:
    layer = BitLinear(512, 60, norm=True, device="cuda", dtype=torch.bfloat16).deploy()
    assert layer.norm is not None
    x = torch.randn(rows, 512, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        assert same(layer(x), layer.kernel.linear(layer.norm(x), layer._packed_weight(), layer.bias))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("storage_format", ["2bit", "base3"])
def test_groups_of_layers(rows: int, count: int, storage_format: str) -> None:
    config = BitQuantConfig(storage_format=storage_format)
    layers = [BitLinear(512, 100 * i + 60, quant_config=config, device="cuda").deploy() for i in range(count)]
    x = torch.randn(rows, 512, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        for y, layer in zip(linear_group(layers, x), layers, strict=True):
            assert same(y, layer(x))


def test_a_group_of_layers_in_turns() -> None:
    layers = [BitLinear(512, out_features, device="cuda").deploy() for out_features in (4100, 1300, 9000)]
    x = torch.randn(400, 512, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        for y, layer in zip(linear_group(layers, x), layers, strict=True):
            assert same(y, layer(x))
