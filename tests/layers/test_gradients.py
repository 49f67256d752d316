"""Values and gradients of every quantizer and layer against their definitions, written out in float64 below.

The data lies away from rounding edges, where float32 and float64 may come to different integers.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bitcore import BitQuantConfig
from bitcore.ops import bitlinear
from bitcore.quantizers import fake_quantize_activations, quantizer_for
from bitlayers import BitConv2d, BitEmbedding, BitLinear, TernaryLinear, patches

WEIGHTS = [
    {"weight_quantizer": "absmean"},
    {"weight_quantizer": "absmedian", "weight_granularity": "per_channel"},
    {"weight_quantizer": "threshold", "threshold_factor": 0.3},
    {"weight_quantizer": "absmean", "weight_granularity": "per_group", "group_size": 5},
    {"weight_quantizer": "absmean", "weight_scale_dtype": "bfloat16", "storage_format": "base3"},
    {"weight_dtype": "int4", "weight_granularity": "per_channel", "weight_scale_dtype": "float16"},
    {"weight_dtype": "int8", "weight_granularity": "per_channel"},
    {"weight_dtype": "int4", "weight_quantizer": "minmax", "weight_granularity": "per_group", "group_size": 7},
]
ACTIVATIONS = [
    {},
    {"activation_granularity": "per_tensor"},
    {"activation_dtype": "float32"},
]
every_weight = pytest.mark.parametrize("weights", WEIGHTS, ids=lambda options: "-".join(map(str, options.values())))
every_activation = pytest.mark.parametrize("activations", ACTIVATIONS, ids=str)
every_ste = pytest.mark.parametrize("ste", ["identity", "clipped"])
HIGHEST = {"ternary": 1, "int4": 7, "int8": 127}
EDGE = 1e-4  # how far from a rounding edge, in steps


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-4)


# The definitions


def groups_of(w: Tensor, config: BitQuantConfig) -> list[tuple[slice, slice]]:
    """The places in `w` [N, K] that share a scale."""
    if config.weight_granularity == "per_tensor":
        return [(slice(None), slice(None))]
    step = w.shape[1] if config.weight_granularity == "per_channel" else config.group_size
    return [
        (slice(row, row + 1), slice(start, start + step))
        for row in range(w.shape[0])
        for start in range(0, w.shape[1], step)
    ]


def weight_steps(w: Tensor, config: BitQuantConfig) -> tuple[Tensor, Tensor, Tensor]:
    """w / scale + zero point before rounding and clamping, scale and zero point, for one group, in float64."""
    size, zero = w.abs(), torch.zeros((), dtype=torch.float64)
    rule = config.weight_quantizer
    if rule == "threshold":
        return w / size.max(), size.max(), zero
    if rule == "minmax":
        lowest, highest = min(w.min().item(), 0.0), max(w.max().item(), 0.0)
        scale = torch.tensor((highest - lowest) / 15, dtype=torch.float64)
        zero = torch.round(-8 - lowest / scale)
        return w / scale + zero, scale, zero
    if rule == "absmax":
        scale = size.max() / HIGHEST[config.weight_dtype]
    else:
        scale = size.mean() if rule == "absmean" else size.flatten().sort().values[(size.numel() - 1) // 2]
    return w / scale, scale, zero


def stored_scale(scale: Tensor, config: BitQuantConfig) -> Tensor:
    return scale.float().to(getattr(torch, config.weight_scale_dtype)).double()


def quantize_weight(w: Tensor, config: BitQuantConfig) -> tuple[Tensor, Tensor]:
    """The dequantized weight, and where the clipped STE lets the gradient pass, both float64 [N, K]."""
    dequantized, passes = torch.empty_like(w), torch.empty_like(w)
    highest = HIGHEST[config.weight_dtype]
    lowest = -1 if config.weight_dtype == "ternary" else -highest - 1
    for place in groups_of(w, config):
        steps, scale, zero = weight_steps(w[place], config)
        if config.weight_quantizer == "threshold":
            values = steps.sign() * (steps.abs() > config.threshold_factor)
        else:
            values = steps.round().clamp(lowest, highest)
        stored = stored_scale(scale, config)
        dequantized[place] = (values - zero) * stored
        steps = w[place] / stored + zero
        passes[place] = ((steps >= lowest - 0.5) & (steps <= highest + 0.5)).double()
    return dequantized, passes


def activation_steps(x: Tensor, config: BitQuantConfig) -> tuple[Tensor, Tensor]:
    """X / scale before rounding, and the scale."""
    largest = x.abs().amax(-1, keepdim=True) if config.activation_granularity == "per_token" else x.abs().max()
    return x * 127 / largest, largest / 127


def quantize_activations(x: Tensor, config: BitQuantConfig) -> Tensor:
    if config.activation_dtype == "float32":
        return x
    steps, scale = activation_steps(x, config)
    return steps.round() * scale


def ste(x: Tensor, quantized: Tensor, passes: Tensor | float = 1.0, strength: float = 1.0) -> Tensor:
    """x + strength * (quantized - x), with the gradient `passes`."""
    identity = x * passes
    return identity + (x + strength * (quantized - x) - identity).detach()


def fake_weight(w: Tensor, config: BitQuantConfig, strength: float = 1.0) -> Tensor:
    quantized, passes = quantize_weight(w.detach(), config)
    return ste(w, quantized, passes if config.ste == "clipped" else 1.0, strength)


def linear(x: Tensor, w: Tensor, b: Tensor | None, config: BitQuantConfig, strength: float = 1.0) -> Tensor:
    return F.linear(
        ste(x, quantize_activations(x.detach(), config), strength=strength), fake_weight(w, config, strength), b
    )


def convolution(x: Tensor, w: Tensor, b: Tensor, config: BitQuantConfig, groups: int, **options: int) -> Tensor:
    """`linear` of the patches of each group of channels."""
    weight = fake_weight(w.flatten(1), config)
    if config.activation_granularity == "per_tensor" or config.activation_dtype == "float32":
        return F.conv2d(
            ste(x, quantize_activations(x.detach(), config)), weight.view_as(w), b, groups=groups, **options
        )
    columns = F.unfold(x, w.shape[2:], **options).transpose(1, 2)
    parts = [
        F.linear(ste(tokens, quantize_activations(tokens.detach(), config)), rows)
        for tokens, rows in zip(columns.chunk(groups, -1), weight.chunk(groups), strict=True)
    ]
    flat = torch.cat(parts, -1).transpose(1, 2) + b[:, None]
    height = (x.shape[2] + 2 * options["padding"] - options["dilation"] * (w.shape[2] - 1) - 1) // options["stride"] + 1
    return flat.unflatten(2, (height, -1))


# Data


def away_from_edges(shape: tuple[int, ...], steps: Callable[[Tensor], Tensor]) -> Tensor:
    """Float32 values for which no number that `steps` gives is near half a step, where rounding turns."""
    for _ in range(1000):
        values = torch.randn(shape)
        distance = (steps(values.double()) - 0.5) % 1
        if bool(((distance > EDGE) & (distance < 1 - EDGE)).all()):
            return values
    raise AssertionError("no such values")


def weight_of(shape: tuple[int, ...], config: BitQuantConfig) -> Tensor:
    def steps(w: Tensor) -> Tensor:
        found = [weight_steps(w.flatten(1)[place], config) for place in groups_of(w.flatten(1), config)]
        values = torch.cat([group[0].flatten() for group in found])
        if config.weight_quantizer == "threshold":
            values = values.abs() - config.threshold_factor + 0.5
        scale = torch.stack([group[1] for group in found])
        settled = stored_scale(scale * (1 + 1e-6), config) == stored_scale(scale * (1 - 1e-6), config)
        return torch.cat([values, torch.where(settled | (config.weight_scale_dtype == "float32"), 0.0, 0.5)])

    return away_from_edges(shape, steps)


def input_of(shape: tuple[int, ...], config: BitQuantConfig) -> Tensor:
    if config.activation_dtype == "float32":
        return torch.randn(shape)
    return away_from_edges(shape, lambda x: activation_steps(x, config)[0])


# Quantizers and the functional form


@every_weight
@every_ste
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_weight_quantizers(weights: dict, ste: str, strength: float) -> None:
    config = BitQuantConfig(**weights, ste=ste)
    weight, upstream = weight_of((4, 13), config).requires_grad_(), torch.randn(4, 13)
    fake = quantizer_for(config).fake_quantize(weight, strength)
    fake.backward(upstream)
    expected_weight = weight.detach().double().requires_grad_()
    expected = fake_weight(expected_weight, config, strength)
    expected.backward(upstream.double())
    close(fake, expected)
    assert torch.equal(weight.grad.double(), expected_weight.grad)


def test_the_clipped_ste_clips() -> None:
    weight = torch.tensor([[0.1, -0.1, 4.0, -4.0, 0.8, -0.8]], requires_grad=True)  # the mean is 1.63
    quantizer_for(BitQuantConfig(ste="clipped")).fake_quantize(weight).sum().backward()
    assert weight.grad.tolist() == [[1, 1, 0, 0, 1, 1]]


@pytest.mark.parametrize("activations", ACTIVATIONS[:2], ids=str)
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_activation_quantizers(activations: dict, strength: float) -> None:
    config = BitQuantConfig(**activations)
    x, upstream = input_of((2, 3, 11), config).requires_grad_(), torch.randn(2, 3, 11)
    fake = fake_quantize_activations(x, config.activation_granularity, strength)
    fake.backward(upstream)
    expected = quantize_activations(x.detach().double(), config)
    close(fake, x.double() + strength * (expected - x.double()))
    assert torch.equal(x.grad, upstream)


@every_activation
def test_lambda_in_the_functional_form(activations: dict) -> None:
    config = BitQuantConfig(**activations)
    w, x = weight_of((4, 13), config).requires_grad_(), input_of((5, 13), config).requires_grad_()
    y = bitlinear.forward(x, w, None, config, quantization_lambda=0.3)
    y.sum().backward()
    w64, x64 = (tensor.detach().double().requires_grad_() for tensor in (w, x))
    expected = linear(x64, w64, None, config, 0.3)
    expected.sum().backward()
    for got, definition in ((y, expected), (w.grad, w64.grad), (x.grad, x64.grad)):
        close(got, definition)
    dense = bitlinear.forward(x, w, None, config, quantization_lambda=0.0)
    assert torch.equal(dense, F.linear(x, w))
    full = bitlinear.forward(x, w, None, config, quantization_lambda=1.0)
    assert torch.equal(full, bitlinear.forward(x, w, None, config))


# Layers, in training and in eval mode


def check(layer: torch.nn.Module, x: Tensor, definition: object) -> None:
    """Compares outputs and the gradients of x, weight and bias."""
    y = layer(x)
    upstream = torch.randn(y.shape)
    y.backward(upstream)
    leaves = [tensor.detach().double().requires_grad_() for tensor in (x, layer.weight, layer.bias)]
    expected = definition(*leaves)
    expected.backward(upstream.double())
    close(y, expected)
    for tensor, leaf in zip((x, layer.weight, layer.bias), leaves, strict=True):
        close(tensor.grad, leaf.grad)


@every_weight
@every_activation
@every_ste
@pytest.mark.parametrize("training", [True, False])
def test_linear(weights: dict, activations: dict, ste: str, training: bool) -> None:
    config = BitQuantConfig(**weights, **activations, ste=ste)
    layer = BitLinear(13, 4, quant_config=config).train(training)
    torch.nn.init.normal_(layer.bias)
    with torch.no_grad():
        layer.weight.copy_(weight_of((4, 13), config))
    x = input_of((2, 3, 13), config).requires_grad_()
    check(layer, x, lambda x, w, b: linear(x, w, b, config))


def test_ternary_linear() -> None:
    layer = TernaryLinear(13, 4, threshold_factor=0.3)
    with torch.no_grad():
        layer.weight.copy_(weight_of((4, 13), layer.quant_config))
    check(layer, torch.randn(5, 13, requires_grad=True), lambda x, w, b: linear(x, w, b, layer.quant_config))


@pytest.mark.parametrize("weights", [WEIGHTS[0], WEIGHTS[1], WEIGHTS[5]], ids=str)
@every_activation
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("block_bytes", [1, 2**25], ids=["row by row", "at once"])
def test_convolution(
    weights: dict, activations: dict, training: bool, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches, "MAX_BLOCK_BYTES", block_bytes)
    config = BitQuantConfig(**weights, **activations, ste="clipped")
    options = {"stride": 2, "padding": 1, "dilation": 2}
    layer = BitConv2d(4, 6, 3, groups=2, quant_config=config, **options).train(training)
    with torch.no_grad():
        layer.weight.copy_(weight_of((6, 2, 3, 3), config))

    def tokens(x: Tensor) -> Tensor:
        if config.activation_granularity == "per_tensor":
            return activation_steps(x, config)[0]
        columns = F.unfold(x, 3, **options).transpose(1, 2)
        return torch.cat([activation_steps(part, config)[0] for part in columns.chunk(2, -1)])

    x = torch.randn(2, 4, 7, 6) if config.activation_dtype == "float32" else away_from_edges((2, 4, 7, 6), tokens)
    check(layer, x.requires_grad_(), lambda x, w, b: convolution(x, w, b, config, 2, **options))


@every_weight
@every_ste
@pytest.mark.parametrize("training", [True, False])
def test_embedding(weights: dict, ste: str, training: bool) -> None:
    config = BitQuantConfig(**weights, ste=ste)
    layer = BitEmbedding(5, 13, padding_idx=1, quant_config=config).train(training)
    with torch.no_grad():
        layer.weight.copy_(weight_of((5, 13), config))
    indices = torch.tensor([[0, 1, 4], [4, 4, 2]])
    y = layer(indices)
    upstream = torch.randn(y.shape)
    y.backward(upstream)
    table = layer.weight.detach().double().requires_grad_()
    expected = F.embedding(indices, fake_weight(table, config), padding_idx=1)
    expected.backward(upstream.double())
    close(y, expected)
    close(layer.weight.grad, table.grad)
    assert not layer.weight.grad[1].any()
