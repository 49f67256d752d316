"""BitConv2d against F.conv2d on the weights that it quantizes to."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitcore import BitQuantConfig
from bitcore.exceptions import DeviceError, DtypeError, ShapeError
from bitlayers import BitConv2d, assert_deploy_equal, patches

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
    {"in_channels": 6, "out_channels": 12, "kernel_size": (1, 3), "stride": (3, 1), "groups": 6},  # skips rows of x
]
INT8 = [
    BitQuantConfig(),
    BitQuantConfig.int8_per_tensor(),
    BitQuantConfig(weight_granularity="per_channel", activation_granularity="per_tensor"),
    BitQuantConfig(weight_dtype="int4", weight_quantizer="minmax", weight_granularity="per_channel"),
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
@pytest.mark.parametrize("config", INT8, ids=str)
def test_train_eval_and_deploy_compute_one_function(shape: dict[str, object], config: BitQuantConfig) -> None:
    layer = BitConv2d(**shape, quant_config=config)  # type: ignore[arg-type]
    x = torch.randn(2, layer.in_channels, 9, 8)
    trained, evaluated = layer.train()(x), layer.eval()(x)
    torch.testing.assert_close(trained, evaluated, rtol=1e-4, atol=1e-4)
    assert_deploy_equal(layer, x)
    assert torch.equal(layer.deploy()(x), evaluated)


@every_shape
@pytest.mark.parametrize("config", INT8, ids=str)
def test_blocks_are_bounded_and_change_nothing(
    shape: dict[str, object], config: BitQuantConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = BitConv2d(**shape, quant_config=config)  # type: ignore[arg-type]
    x = torch.randn(5, layer.in_channels, 9, 8)
    trained, evaluated = layer.train()(x), layer.eval()(x)
    made: list[int] = []
    original = patches.Window.patches

    def watch(self: patches.Window, block: Tensor, groups: int) -> tuple[Tensor, ...]:
        result = original(self, block, groups)
        made.append(sum(part.nbytes for part in result))
        return result

    monkeypatch.setattr(patches.Window, "patches", watch)
    height, width = evaluated.shape[2:]
    row_bytes = 4 * width * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
    for limit, blocks in ((2 * height * row_bytes, 3), (2 * row_bytes, 5 * -(-height // 2)), (1, 5 * height)):
        monkeypatch.setattr(patches, "MAX_BLOCK_BYTES", limit)
        assert torch.equal(layer.eval()(x), evaluated)
        assert len(made) == blocks
        assert max(made) <= max(limit, row_bytes)
        made.clear()
        torch.testing.assert_close(layer.train()(x), trained)
        made.clear()


def test_training_keeps_no_patches_but_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "MAX_BLOCK_BYTES", 2**14)
    layer = BitConv2d(4, 4, 3, padding=1)
    x = torch.randn(4, 4, 16, 16, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.nbytes), t)[1], lambda t: t):
        y = layer(x)
    assert sum(kept) < 4 * x.nbytes  # the patches are nine times x
    y.sum().backward()
    monkeypatch.undo()
    gradients = x.grad.clone(), layer.weight.grad.clone()
    x.grad = layer.weight.grad = None
    layer(x).sum().backward()
    for got, expected in zip(gradients, (x.grad, layer.weight.grad), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_per_tensor_has_one_scale_for_all_of_the_input(training: bool) -> None:
    """Also where a group or the stride does not see its largest value."""
    layer = BitConv2d(2, 2, 1, stride=2, groups=2, quant_config=BitQuantConfig.int8_per_tensor()).train(training)
    x = torch.zeros(1, 2, 3, 3)
    x[0, 0, 1, 1], x[0, 1, 0, 0] = 127.0, 0.4
    assert torch.equal(layer(x), layer.bias.reshape(1, 2, 1, 1).expand(1, 2, 2, 2))
    x[0, 0, 1, 1] = float("nan")
    assert layer(x).isnan().all()


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
    with pytest.raises(DeviceError, match="x is on meta, expected on cpu"):
        layer(torch.zeros(2, 3, 5, 5, device="meta"))
    with pytest.raises(DtypeError, match=r"x is torch.float64, expected torch.float32, the weight's dtype"):
        BitConv2d(3, 5, 3)(torch.zeros(2, 3, 5, 5, dtype=torch.float64))
    assert layer(torch.randn(0, 3, 5, 5)).shape == (0, 5, 3, 3)
