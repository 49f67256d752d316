"""detect_non_finite names where the first NaN or Inf appears."""

import pytest
import torch
from torch import Tensor, nn

from bitcore.exceptions import BitLabError, NonFiniteError
from bitlayers import BitFeedForward, BitLinear
from bitlayers.training import detect_non_finite


def model() -> nn.Sequential:
    return nn.Sequential(BitLinear(8, 8), nn.ReLU(inplace=True), BitLinear(8, 8), nn.LayerNorm(8))


def poison(tensor: Tensor, value: float = float("nan")) -> None:
    with torch.no_grad():
        tensor.view(-1)[5] = value


@pytest.mark.parametrize("training", [True, False])
def test_a_healthy_model_is_let_be(training: bool) -> None:
    net = model().train(training)
    x = torch.randn(3, 8)
    with detect_non_finite(net):
        net(x).sum().backward()
    gradients = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    net(x).sum().backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(gradients, net.parameters(), strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights(value: float) -> None:
    net = model()
    poison(net[2].weight, value)
    message = rf"2\.weight is {value} at \[0, 5\], expected finite"
    with detect_non_finite(net), pytest.raises(NonFiniteError, match=message) as error:
        net(torch.randn(3, 8))
    assert isinstance(error.value, BitLabError)
    assert isinstance(error.value, ArithmeticError)


def test_inputs_and_outputs() -> None:
    net = model()
    x = torch.randn(3, 8)
    poison(x)
    with detect_non_finite(net), pytest.raises(NonFiniteError, match=r"an input of the model is nan at \[0, 5\]"):
        net(x)

    class Divide(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"y": x / torch.zeros(8)}

    net.append(Divide())
    with detect_non_finite(net), pytest.raises(NonFiniteError, match="the output of 4 is "):
        net(torch.randn(3, 8))


def test_code_between_layers() -> None:
    block = BitFeedForward(8, 8, "silu")
    with torch.no_grad():
        block.gate_proj.weight.fill_(1.0), block.up_proj.weight.fill_(1.0)
    x = torch.full((1, 8), 3e38)
    block.bfloat16()
    x = torch.full((1, 8), 1e25).bfloat16()
    with detect_non_finite(block), pytest.raises(NonFiniteError, match="an input of down_proj is inf"):
        block(x)


@pytest.mark.parametrize("layer", [0, 2])
def test_gradients(layer: int) -> None:
    net = model()
    seen: list[Tensor] = []
    net[layer].register_forward_hook(lambda module, args, output: seen.append(output))
    with detect_non_finite(net):
        loss = net(torch.randn(3, 8)).sum()
        seen[0].register_hook(lambda gradient: gradient * torch.inf)
        with pytest.raises(NonFiniteError, match=rf"the gradient of (the output of )?{layer}\b"):
            loss.backward()


def test_gradients_of_outputs_come_first() -> None:
    net = model()
    with detect_non_finite(net), pytest.raises(NonFiniteError, match="the gradient of the output of 3 is inf"):
        (net(torch.randn(3, 8)).sum() * torch.inf).backward()
    with detect_non_finite(net, gradients=False):
        (net(torch.randn(3, 8)).sum() * torch.inf).backward()


def test_nothing_is_left_behind() -> None:
    net = model()
    x = torch.randn(3, 8)
    with pytest.raises(RuntimeError, match="of the user's own"), detect_non_finite(net):
        raise RuntimeError("of the user's own")
    poison(net[2].weight)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    net(x).sum().backward()
