"""Training on the kernels: the forward pass of inference, and the gradients that the PyTorch definitions give."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bitcore import BitQuantConfig
from bitcore.kernels import KernelRegistry
from bitlayers import BitLinear
from bitlayers.linear_group import linear_group

KERNEL = KernelRegistry.get_kernel_for_config(BitQuantConfig()).name
pytestmark = pytest.mark.skipif(
    KernelRegistry.get_kernel_by_name(KERNEL, BitQuantConfig()).training_operators() is None,
    reason=f"{KERNEL}, the best kernel here, has no operators for training",
)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CONFIGS = [
    BitQuantConfig(),
    BitQuantConfig(weight_granularity="per_channel", storage_format="base3", activation_granularity="per_tensor"),
    BitQuantConfig(weight_quantizer="threshold", ste="clipped", weight_scale_dtype="float16"),
    BitQuantConfig(activation_dtype="float32"),
]


def gradients_of(layer: BitLinear, x: Tensor, upstream: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    (layer(x) * upstream).sum().backward()
    gradients = [x.grad, *[parameter.grad for parameter in layer.parameters()]]
    layer.zero_grad()
    return [gradient for gradient in gradients if gradient is not None]


@pytest.fixture(params=DEVICES, autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test runs on all devices of this machine."""
    with torch.device(request.param):
        yield request.param


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_is_inference_and_backward_is_the_definition(config: BitQuantConfig, dtype: torch.dtype) -> None:
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 0.1}
    layer = BitLinear(70, 33, quant_config=config, dtype=dtype)
    nn.init.normal_(layer.bias)
    x, upstream = torch.randn(4, 5, 70).to(dtype), torch.randn(4, 5, 33).to(dtype)
    training = layer(x)
    if config.activation_dtype == "int8":
        assert torch.equal(training, layer.eval()(x))
    else:
        torch.testing.assert_close(training, layer.eval()(x), **close)
    layer.train()
    fused = gradients_of(layer, x, upstream)
    with KernelRegistry.use("reference"):
        defined = gradients_of(layer, x, upstream)
    assert len(fused) == len(defined) == 3
    for ours, theirs in zip(fused, defined, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        torch.testing.assert_close(ours, theirs, **close)


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    layer = BitLinear(12, 7)
    layer.weight.requires_grad_(False)
    x = torch.randn(3, 12)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert torch.equal(layer.bias.grad, torch.full((7,), 3.0))
    assert not BitLinear(12, 7, bias=False).requires_grad_(False)(x).requires_grad


def test_saved_tensors_are_small() -> None:
    layer, x = BitLinear(256, 64), torch.randn(32, 256, requires_grad=True)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    assert sum(tensor.nbytes for tensor in kept) == 64 * 256 // 4 + 32 * 256 + 4 * 32 + 4
    y.sum().backward()
    assert x.grad is not None


def test_checkpointing_gives_the_same_gradients() -> None:
    model = nn.Sequential(BitLinear(20, 30), nn.GELU(), BitLinear(30, 4))
    x = torch.randn(6, 20, requires_grad=True)
    results = []
    for reentrant in (None, False, True):
        model.zero_grad()
        x.grad = None
        y = model(x) if reentrant is None else checkpoint(model, x, use_reentrant=reentrant)
        y.square().sum().backward()
        results.append([x.grad, *[parameter.grad for parameter in model.parameters()]])
    for others in results[1:]:
        assert all(torch.equal(first, other) for first, other in zip(results[0], others, strict=True))


def test_autocast_gives_its_dtype_and_float32_gradients_to_masters(device: str) -> None:
    layer, x = BitLinear(40, 8), torch.randn(5, 40, requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        y = layer(x)
        ys = linear_group([layer, BitLinear(40, 9)], x)
    assert [y.dtype, *[one.dtype for one in ys]] == [torch.bfloat16] * 3
    assert torch.equal(y, layer.eval()(x).bfloat16())
    y.sum().backward()
    assert layer.weight.grad.dtype == x.grad.dtype == torch.float32


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_group_trains_as_its_layers_one_by_one(config: BitQuantConfig) -> None:
    layers = [BitLinear(24, rows, bias=rows > 5, quant_config=config) for rows in (8, 5, 17)]
    x = torch.randn(2, 3, 24, requires_grad=True)
    results = []
    for outputs in (linear_group(layers, x), [layer(x) for layer in layers]):
        weighted = [output * torch.linspace(-1, 2, output.shape[-1]) for output in outputs]
        sum(output.sum() for output in weighted).backward()
        results.append([*outputs, x.grad, *[parameter.grad for layer in layers for parameter in layer.parameters()]])
        x.grad = None
        for layer in layers:
            layer.zero_grad()
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_a_group_whose_outputs_are_not_all_used() -> None:
    layers = [BitLinear(24, 8), BitLinear(24, 8)]
    x = torch.randn(3, 24, requires_grad=True)
    linear_group(layers, x)[1].sum().backward()
    alone = torch.randn_like(x).copy_(x.detach()).requires_grad_()
    layers[0].zero_grad()
    gradient = layers[1].weight.grad.clone()
    layers[1].zero_grad()
    layers[1](alone).sum().backward()
    assert torch.equal(x.grad, alone.grad)
    assert torch.equal(gradient, layers[1].weight.grad)
    assert layers[0].weight.grad is None or not layers[0].weight.grad.any()


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    layer, x = BitLinear(6, 4), torch.randn(3, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_torch_func_goes_by_the_definitions() -> None:
    layer, x = BitLinear(10, 4), torch.randn(3, 10)
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    detached = {name: parameter.detach() for name, parameter in parameters.items()}
    of_samples = torch.func.vmap(torch.func.grad(loss), (None, 0))(detached, x)
    loss(parameters, x).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(of_samples[name].sum(0), parameter.grad)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("config", CONFIGS[:1] + CONFIGS[3:], ids=str)
def test_compiles_into_one_graph(config: BitQuantConfig, autocast: bool, device: str) -> None:
    model = nn.Sequential(BitLinear(20, 30, quant_config=config), nn.GELU(), BitLinear(30, 4, quant_config=config))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(6, 20, requires_grad=True)
    results = []
    for forward in (model, compiled):
        model.zero_grad()
        x.grad = None
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            y = forward(x)
        y.square().sum().backward()
        results.append([y, x.grad, *[parameter.grad for parameter in model.parameters()]])
    for eager, traced in zip(*results, strict=True):
        assert traced.any()
        torch.testing.assert_close(traced, eager)


def test_tensors_of_nothing_train_on_the_definitions() -> None:
    layer, x = BitLinear(8, 3), torch.randn(0, 8, requires_grad=True)
    layer(x).sum().backward()
    assert not layer.weight.grad.any()
    assert x.grad.shape == (0, 8)
