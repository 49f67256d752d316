"""State dicts: what loads into what, and what is refused without a change."""

import pytest
import torch
from torch import Tensor, nn

from bitcore import BitQuantConfig, CheckpointError
from bitlayers import BitConv2d, BitEmbedding, BitLinear, deploy

CONFIGS = [
    BitQuantConfig(),
    BitQuantConfig(storage_format="base3"),
    BitQuantConfig.int4(8),
    BitQuantConfig(weight_granularity="per_channel"),
    BitQuantConfig(weight_dtype="int8", weight_granularity="per_channel"),
]


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_unchanged(module: nn.Module, before: dict[str, Tensor]) -> None:
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_names() -> None:
    layer = BitLinear(20, 6)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert set(layer.deploy().state_dict()) == {"weight_packed", "weight_scale", "bias"}
    zero_point = BitLinear(20, 6, quant_config=BitQuantConfig(weight_dtype="int4", weight_quantizer="minmax")).deploy()
    assert set(zero_point.state_dict()) == {"weight_packed", "weight_scale", "weight_zero_point", "bias"}


def test_checkpoints_of_dense_models_load() -> None:
    dense, layer = nn.Linear(20, 6), BitLinear(20, 6)
    layer.load_state_dict(dense.state_dict())
    assert torch.equal(layer.weight, dense.weight)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_deployed_into_deployed_and_training_into_deployed(config: BitQuantConfig, assign: bool) -> None:
    source = BitLinear(20, 6, quant_config=config).eval()
    nn.init.normal_(source.bias)
    training_state = snapshot(source)
    x = torch.randn(3, 20)
    y = source(x)
    for state in (training_state, source.deploy().state_dict()):
        target = BitLinear(20, 6, quant_config=config).deploy()
        target(x)
        target.load_state_dict(state, assign=assign)
        assert target.is_deployed
        assert torch.equal(target(x), y)


def test_packed_into_training_is_refused() -> None:
    packed = BitLinear(20, 6).deploy().state_dict()
    layer = BitLinear(20, 6)
    before = snapshot(layer)
    with pytest.raises(CheckpointError, match="weight_packed is a deployed layer's state, expected weight"):
        layer.load_state_dict(packed)
    assert_unchanged(layer, before)
    model = nn.Sequential(nn.ReLU(), BitLinear(20, 6))
    with pytest.raises(CheckpointError, match=r"1\.weight_packed is a deployed layer's state, expected 1\.weight"):
        model.load_state_dict({f"1.{name}": tensor for name, tensor in packed.items()})


def damaged(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in state.items()}
    if how == "code 3":
        state["weight_packed"][1, 1] |= 3
    elif how == "nan scale":
        state["weight_scale"][0] = float("nan")
    elif how == "no scale at all":
        state["weight_scale"].zero_()
    elif how == "inverted sign":
        state["weight_scale"].neg_()
    elif how == "short rows":
        state["weight_packed"] = state["weight_packed"][:, :-1]
    elif how == "no scale":
        del state["weight_scale"]
    elif how == "wrong dtype":
        state["weight_packed"] = state["weight_packed"].int()
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("code 3", r"a code of 3, expected ternary weights in 2bit"),
        ("nan scale", r"weight_scale is nan at \[0\], expected positive and finite"),
        ("no scale at all", r"weight_scale is 0.0 at \[0\], expected positive and finite"),
        ("inverted sign", r"weight_scale is -.* at \[0\], expected positive and finite"),
        ("short rows", r"weight_packed is of shape \[6, 4\], expected \[6, 5\]"),
        ("no scale", "weight_scale is missing beside weight_packed"),
        ("wrong dtype", "packed is torch.int32, expected torch.uint8"),
    ],
)
def test_damaged_packed_states_are_refused(how: str, message: str) -> None:
    layer = BitLinear(20, 6).deploy()
    before = snapshot(layer)
    with pytest.raises(CheckpointError, match=message):
        layer.load_state_dict(damaged(BitLinear(20, 6).deploy().state_dict(), how))
    assert_unchanged(layer, before)
    assert layer(torch.randn(1, 20)).shape == (1, 6)


def test_non_finite_master_into_deployed_is_refused() -> None:
    state = BitLinear(20, 6).state_dict()
    state["weight"][0, 0] = float("nan")
    layer = BitLinear(20, 6).deploy()
    before = snapshot(layer)
    with pytest.raises(CheckpointError, match=r"weight is nan at \[0, 0\]"):
        layer.load_state_dict(state)
    assert_unchanged(layer, before)


def test_a_half_precision_scale_in_a_file_is_widened() -> None:
    state = BitLinear(20, 6).deploy().state_dict()
    layer = BitLinear(20, 6).deploy()
    layer.load_state_dict({**state, "weight_scale": state["weight_scale"].bfloat16()}, assign=True)
    assert layer.weight_scale.dtype == torch.float32
    assert layer(torch.randn(1, 20)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_half_precision_scale_loses_nothing_where_it_was_trained_with(dtype: torch.dtype) -> None:
    config = BitQuantConfig(weight_scale_dtype=str(dtype).removeprefix("torch."), weight_granularity="per_channel")
    layer, target = BitLinear(20, 6, quant_config=config), BitLinear(20, 6, quant_config=config).deploy()
    x = torch.randn(3, 20)
    evaluated = layer.eval()(x)
    state = layer.deploy().state_dict()
    target.load_state_dict({**state, "weight_scale": state["weight_scale"].to(dtype)})
    assert torch.equal(target(x), evaluated)


def test_every_kind_of_layer_round_trips() -> None:
    def build() -> nn.Module:
        layers = [BitEmbedding(11, 16), BitLinear(16, 16, norm=True), nn.Unflatten(-1, (4, 2, 2)), BitConv2d(4, 6, 2)]
        return nn.Sequential(*layers)

    source, target = build().eval(), build().eval()
    indices = torch.randint(0, 11, (3,))
    y = source(indices)
    deploy(source)
    deploy(target)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(indices), y)
