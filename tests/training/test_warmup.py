"""QuantizationWarmup: λ's course, what layers compute on the way, and resuming."""

import io
import math

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from bitcore import BitQuantConfig
from bitcore.exceptions import ArgumentError
from bitlayers import BitConv2d, BitEmbedding, BitLinear, TernaryLinear, assert_deploy_equal, patches
from bitlayers.training import QuantizationWarmup

INPUTS = {
    BitLinear: lambda: torch.randn(3, 12),
    TernaryLinear: lambda: torch.randn(3, 12),
    BitConv2d: lambda: torch.randn(2, 3, 6, 6),
    BitEmbedding: lambda: torch.randint(0, 9, (4,)),
}
LAYERS = [
    lambda config: BitLinear(12, 5, quant_config=config),
    lambda config: TernaryLinear(12, 5),
    lambda config: BitConv2d(3, 4, 3, quant_config=config),
    lambda config: BitEmbedding(9, 6, quant_config=config),
]
CONFIGS = [
    BitQuantConfig(),
    BitQuantConfig.int8_per_tensor(),
    BitQuantConfig(weight_granularity="per_channel", ste="clipped"),
    BitQuantConfig.int4(4),
]


def dense(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, layer.weight, layer.bias)
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, layer.weight, layer.bias)
    return F.embedding(x, layer.weight)


def test_linear_and_sigmoid() -> None:
    layer = BitLinear(4, 4)
    warmup = QuantizationWarmup(layer, 4)
    course = []
    for _ in range(7):
        course.append(layer.quantization_lambda)
        assert warmup.quantization_lambda == layer.quantization_lambda
        warmup.step()
    assert course == [0, 0.25, 0.5, 0.75, 1, 1, 1]
    warmup = QuantizationWarmup(layer, 4, shape="sigmoid", sharpness=8)
    for step in range(6):
        expected = 1.0 if step >= 4 else 1 / (1 + math.exp(-8 * (step / 4 - 0.5)))
        assert layer.quantization_lambda == pytest.approx(expected)
        warmup.step()
    QuantizationWarmup(layer, 0)
    assert layer.quantization_lambda == 1


@pytest.mark.parametrize("build", LAYERS)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_from_dense_to_what_is_deployed(build: object, config: BitQuantConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = build(config)  # type: ignore[operator]
    x = INPUTS[type(layer)]()
    full = layer(x)
    evaluated = layer.eval()(x)
    layer.train()
    warmup = QuantizationWarmup(layer, 2)
    torch.testing.assert_close(layer(x), dense(layer, x))  # λ = 0
    assert torch.equal(layer.eval()(x), evaluated)  # eval is not touched by λ
    assert_deploy_equal(layer, x)
    layer.train()
    warmup.step()
    halfway = layer(x)
    assert not torch.allclose(halfway, full)
    assert not torch.allclose(halfway, dense(layer, x))
    warmup.step()
    assert torch.equal(layer(x), full)
    if isinstance(layer, BitConv2d):  # λ reaches every block
        warmup.load_state_dict({"step": 1})
        monkeypatch.setattr(patches, "MAX_BLOCK_BYTES", 1)
        torch.testing.assert_close(layer(x), halfway)


def test_gradients_are_those_of_the_ste_at_any_lambda() -> None:
    layer = BitLinear(12, 5, quant_config=BitQuantConfig.weight_only())
    x, upstream = torch.randn(3, 12), torch.randn(3, 5)
    for step in range(3):
        QuantizationWarmup(layer, 2).load_state_dict({"step": step})
        layer.weight.grad = None
        layer(x).backward(upstream)
        torch.testing.assert_close(layer.weight.grad, upstream.T @ x)


def test_resumes_with_the_same_next_step() -> None:
    def steps(model: nn.Module, warmup: QuantizationWarmup, optimizer: torch.optim.Optimizer, data: Tensor) -> None:
        for x in data:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            warmup.step()

    def build() -> tuple[nn.Module, QuantizationWarmup, torch.optim.Optimizer]:
        model = nn.Sequential(BitLinear(12, 8), nn.ReLU(), BitLinear(8, 4))
        return model, QuantizationWarmup(model, 6), torch.optim.AdamW(model.parameters(), 0.01)

    data = torch.randn(8, 5, 12)
    model, warmup, optimizer = build()
    steps(model, warmup, optimizer, data[:3])
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (model, warmup, optimizer)], file)
    steps(model, warmup, optimizer, data[3:])
    resumed = build()
    file.seek(0)
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert resumed[0][0].quantization_lambda == 0.5
    steps(*resumed, data[3:])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed[0].parameters(), strict=True))


def test_lambda_is_no_part_of_the_state_dict() -> None:
    layer = BitLinear(4, 4)
    QuantizationWarmup(layer, 5)
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_compiles_at_the_first_lambda_at_any_and_at_one() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    model = nn.Sequential(BitLinear(12, 8), nn.ReLU(), BitLinear(8, 4))
    warmup = QuantizationWarmup(model, 12)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    x = torch.randn(3, 12)
    compilations = []
    for _ in range(15):
        torch.testing.assert_close(compiled(x), model(x))
        compilations.append(counter.frame_count)
        warmup.step()
    changes = [step for step in range(1, 15) if compilations[step] != compilations[step - 1]]
    assert changes == [1, 12]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": -1}, "steps is -1, expected 0 or more"),
        ({"steps": 1, "shape": "cosine"}, "shape is 'cosine', expected 'linear' or 'sigmoid'"),
        ({"steps": 1, "sharpness": 0.0}, "sharpness is 0.0"),
        ({"steps": 1, "model": nn.Linear(2, 2)}, "model is without Bit layers"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        QuantizationWarmup(**{"model": BitLinear(2, 2), **arguments})
