import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bitcore.exceptions import ConfigError, KernelNotFoundError, LayerStateError
from bitcore.kernels import KernelRegistry
from bitlayers import BitLinear, TernaryLinear, deploy


@pytest.mark.parametrize("per_channel", [True, False])
def test_is_the_threshold_rule_without_activation_quantization(per_channel: bool) -> None:
    layer = TernaryLinear(30, 7, threshold_factor=0.2, per_channel=per_channel)
    x = torch.randn(4, 30)
    w = layer.weight.detach()
    scale = w.abs().amax(1, keepdim=True) if per_channel else w.abs().max()
    ternary = w.sign() * (w.abs() > 0.2 * scale)
    expected = F.linear(x, ternary * scale, layer.bias)
    torch.testing.assert_close(layer.train()(x), expected)
    torch.testing.assert_close(layer.eval()(x), expected)
    evaluated = layer(x)
    assert torch.equal(layer.deploy()(x), evaluated)


def test_without_quantization_it_is_nn_linear() -> None:
    layer = TernaryLinear(30, 7, quantize=False)
    x = torch.randn(4, 30)
    for _ in range(2):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        layer.eval()
    with pytest.raises(LayerStateError, match="quantize=False"):
        layer.deploy()
    model = nn.Sequential(layer, BitLinear(7, 2))
    assert not deploy(model)[0].is_deployed


@pytest.mark.parametrize("backend", ["python", "reference"])
def test_backends(backend: str) -> None:
    assert TernaryLinear(8, 4, backend=backend).eval().kernel.name == "reference"


def test_auto_takes_the_best_kernel() -> None:
    layer = TernaryLinear(8, 4).eval()
    assert layer.kernel.name == KernelRegistry.get_kernel_for_config(layer.quant_config).name


def test_wrong_backends_and_factors_are_refused() -> None:
    with pytest.raises(KernelNotFoundError, match="no kernel is named 'fpga'"):
        TernaryLinear(8, 4, backend="fpga")
    layer = TernaryLinear(8, 4, backend="portable", dtype=torch.float64).eval()
    with pytest.raises(KernelNotFoundError, match=r"dtype is torch.float64, serves torch.bfloat16|not built"):
        layer(torch.randn(1, 8, dtype=torch.float64))
    with pytest.raises(ConfigError, match="threshold_factor"):
        TernaryLinear(8, 4, threshold_factor=-1.0)


def test_from_linear() -> None:
    dense = nn.Linear(8, 4)
    layer = TernaryLinear.from_linear(dense)
    assert isinstance(layer, TernaryLinear)
    assert layer.quant_config.weight_quantizer == "threshold"
    assert torch.equal(layer.weight, dense.weight)
