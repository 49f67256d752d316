"""BitConv2d against F.conv2d on the weights that it quantizes to."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bitcore import BitQuantConfig
from bitcore.exceptions import DtypeError, ShapeError
from bitlayers import BitConv2d

SHAPES = [
    {"in_channels": 3, "out_channels": 5, "kernel_size": 3},
    {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2), "stride": 2, "padding": 1, "groups": 2},
    {
        "in_channels": 4,
        "out_channels": 4,
        "kernel_size": 3,
        "dilation": 2,
        "padding": "same",
        "groups": 4,
        "bias": False,
    },
    {"in_channels": 2, "out_channels": 3, "kernel_size": 2, "padding": (1, 2), "padding_mode": "circular"},
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@every_shape
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_float_activations_equal_a_convolution(shape: dict[str, object], granularity: str) -> None:
    config = BitQuantConfig(activation_dtype="float32", weight_granularity=granularity)
    layer = BitConv2d(**shape, quant_config=config)  # type: ignore[arg-type]
    values, scale = layer.get_quantized_weight()
    dense = nn.Conv2d(**shape)  # type: ignore[arg-type]
    dense.load_state_dict({**layer.state_dict(), "weight": (values * scale.reshape(-1, 1)).reshape(dense.weight.shape)})
    x = torch.randn(2, layer.in_channels, 9, 8)
    expected = dense(x)
    torch.testing.assert_close(layer.train()(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.eval()(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x[0]), expected[0], rtol=1e-4, atol=1e-5)


@every_shape
@pytest.mark.parametrize(
    "config",
    [BitQuantConfig(), BitQuantConfig(weight_granularity="per_channel"), BitQuantConfig.int8_per_tensor()],
    ids=str,
)
def test_train_eval_and_deploy_compute_one_function(shape: dict[str, object], config: BitQuantConfig) -> None:
    layer = BitConv2d(**shape, quant_config=config)  # type: ignore[arg-type]
    x = torch.randn(2, layer.in_channels, 9, 8)
    trained, evaluated = layer.train()(x), layer.eval()(x)
    torch.testing.assert_close(trained, evaluated, rtol=1e-4, atol=1e-4)
    assert torch.equal(layer.deploy()(x), evaluated)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_a_convolution_with_float_activations(training: bool) -> None:
    layer = BitConv2d(4, 6, 3, padding=1, groups=2, quant_config=BitQuantConfig.weight_only()).train(training)
    values, scale = layer.get_quantized_weight()
    w = (values * scale).reshape(6, 2, 3, 3).requires_grad_()
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    upstream = torch.randn(2, 6, 5, 5)
    layer(x).backward(upstream)
    got = (x.grad, layer.weight.grad, layer.bias.grad)
    x.grad = None
    bias = layer.bias.detach().requires_grad_()
    F.conv2d(x, w, bias, padding=1, groups=2).backward(upstream)
    for gradient, expected in zip(got, (x.grad, w.grad, bias.grad), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_wrong_input_is_named() -> None:
    layer = BitConv2d(3, 5, 3).eval()
    with pytest.raises(ShapeError, match=r"x is of shape \[2, 4, 5, 5\], expected \[batch, 3, height, width\]"):
        layer(torch.randn(2, 4, 5, 5))
    with pytest.raises(ShapeError, match="after padding"):
        layer(torch.randn(2, 3, 2, 2))
    with pytest.raises(DtypeError, match=r"x is torch.uint8"):
        layer(torch.zeros(2, 3, 5, 5, dtype=torch.uint8))
    assert layer(torch.randn(0, 3, 5, 5)).shape == (0, 5, 3, 3)
