"""linear_group gives what its layers give, one operator for all where it can."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bitcore import BitQuantConfig
from bitcore.exceptions import DtypeError, ShapeError
from bitcore.kernels import BitKernelBase
from bitlayers import BitLinear, TernaryLinear, linear_group

SIZES = (24, 8, 8)


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the groups that kernels were given."""
    seen: list[int] = []

    def watch(kernel: type[BitKernelBase]) -> None:
        original = kernel.linear_group

        def linear_group(self: BitKernelBase, x: Tensor, weights: list, biases: list) -> list[Tensor]:
            seen.append(len(weights))
            return original(self, x, weights, biases)

        monkeypatch.setattr(kernel, "linear_group", linear_group)

    watch(type(BitLinear(4, 4).eval().kernel))
    return seen


def layers_of(config: BitQuantConfig | None = None, **options: bool) -> list[BitLinear]:
    layers = [BitLinear(40, size, quant_config=config, **options) for size in SIZES]
    for layer in layers:
        if layer.bias is not None:
            nn.init.normal_(layer.bias)
    return layers


def on_the_reference(layer: BitLinear) -> BitLinear:
    layer._kernel_name = "reference"
    return layer.eval()


def assert_equal_to_layers(layers: list[nn.Module], x: Tensor) -> None:
    for y, layer in zip(linear_group(layers, x), layers, strict=True):
        assert torch.equal(y, layer(x))


@pytest.mark.parametrize("config", [BitQuantConfig(), BitQuantConfig(weight_granularity="per_channel")], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("deploy", [True, False])
@torch.no_grad()
def test_inference_is_one_call(config: BitQuantConfig, bias: bool, deploy: bool, together: list[int]) -> None:
    layers = [layer.deploy() if deploy else layer.eval() for layer in layers_of(config, bias=bias)]
    for shape in ((40,), (1, 40), (2, 3, 40)):
        assert_equal_to_layers(layers, torch.randn(shape))
    assert together == [3, 3, 3]


@pytest.mark.parametrize(
    "change",
    [
        lambda layers: layers[0].train(),
        lambda layers: layers[1].register_forward_hook(lambda module, x, y: y + 1),
        lambda layers: setattr(layers[1], "forward", lambda x: x[..., :8]),
        lambda layers: layers.__setitem__(1, nn.Linear(40, 8)),
        lambda layers: layers.__setitem__(1, BitLinear(40, 8, norm=True).eval()),
        lambda layers: layers.__setitem__(1, TernaryLinear(40, 8, quantize=False).eval()),
        lambda layers: layers.__setitem__(1, BitLinear(40, 8, quant_config=BitQuantConfig.weight_only()).eval()),
        lambda layers: layers.__setitem__(1, on_the_reference(BitLinear(40, 8))),
        lambda layers: layers.__delitem__(slice(1, None)),
        lambda layers: layers.clear(),
    ],
    ids=[
        "train",
        "hook",
        "own_forward",
        "dense",
        "norm",
        "not_quantized",
        "other_config",
        "other_kernel",
        "one",
        "none",
    ],
)
@torch.no_grad()
def test_layers_that_do_not_agree_are_called_one_by_one(
    change: Callable[[list[nn.Module]], object], together: list[int]
) -> None:
    layers: list[nn.Module] = [layer.eval() for layer in layers_of()]
    change(layers)
    assert_equal_to_layers(layers, torch.randn(3, 40))
    assert together == []


def test_gradients_flow(together: list[int]) -> None:
    layers = [layer.eval() for layer in layers_of()]
    x = torch.randn(3, 40, requires_grad=True)
    torch.cat(linear_group(layers, x), -1).sum().backward()
    assert x.grad is not None and all(layer.weight.grad is not None for layer in layers)
    assert together == []


@torch.no_grad()
def test_compiles() -> None:
    layers = [layer.deploy() for layer in layers_of()]
    x = torch.randn(3, 40)
    compiled = torch.compile(lambda x: linear_group(layers, x), fullgraph=True, backend="aot_eager")
    for y, layer in zip(compiled(x), layers, strict=True):
        assert torch.equal(y, layer(x))


@torch.no_grad()
def test_input_that_does_not_fit_is_refused() -> None:
    layers = [layer.deploy() for layer in layers_of()]
    with pytest.raises(ShapeError, match="in_features"):
        linear_group(layers, torch.randn(3, 41))
    with pytest.raises(ShapeError, match="in_features"):
        linear_group([layers[0], BitLinear(39, 8).deploy()], torch.randn(3, 40))
    with pytest.raises(DtypeError):
        linear_group(layers, torch.zeros(3, 40, dtype=torch.int32))
