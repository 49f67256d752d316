"""convert, deploy, memory_report and the layer registry."""

import pytest
import torch
from torch import nn

from bitcore import BitQuantConfig, QuantizationError
from bitcore.exceptions import ArgumentError, LayerStateError, UnconvertedWarning
from bitlayers import LAYER_REGISTRY, BitConv2d, BitEmbedding, BitLinear, convert, deploy, memory_report, register_layer


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.lm_head = nn.Linear(8, 16, bias=False)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        x = self.embedding(indices)
        for layer in self.layers:
            x = layer(x).relu()
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.lm_head(x)


def kinds(model: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules() if hasattr(module, "weight")}


def test_converts_in_place_and_keeps_parameters() -> None:
    model = Block()
    parameters = dict(model.named_parameters())
    assert convert(model, BitQuantConfig.weight_only()) is model
    found = kinds(model)
    assert found["layers.0"] is found["layers.1"] is BitLinear
    assert found["embedding"] is BitEmbedding
    assert found["lm_head"] is nn.Linear
    assert found["attention.out_proj"] is not BitLinear  # a subclass of nn.Linear that its owner reads by itself
    assert model.layers[0].quant_config == BitQuantConfig.weight_only()
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    assert model(torch.randint(0, 16, (2, 3))).shape == (2, 3, 16)


@pytest.mark.parametrize(
    ("include", "exclude", "converted"),
    [
        (["layers.*"], (), {"layers.0", "layers.1"}),
        (["layers"], ("layers.1",), {"layers.0"}),
        (["*head"], None, {"lm_head"}),
        (lambda name, module: isinstance(module, nn.Linear) and module.out_features == 16, None, {"lm_head"}),
        (None, lambda name, module: isinstance(module, nn.Embedding), {"layers.0", "layers.1", "lm_head"}),
    ],
)
def test_include_and_exclude(include: object, exclude: object, converted: set[str]) -> None:
    model = convert(Block(), include=include, exclude=exclude)  # type: ignore[arg-type]
    assert {name for name, kind in kinds(model).items() if kind.__name__.startswith("Bit")} == converted


def test_not_in_place_leaves_the_model_alone() -> None:
    model = Block()
    converted = convert(model, inplace=False)
    assert type(model.layers[0]) is nn.Linear
    assert type(converted.layers[0]) is BitLinear
    assert converted.layers[0].weight is not model.layers[0].weight


def test_tied_weights_and_shared_modules_stay_so() -> None:
    model = Block()
    model.lm_head.weight = model.embedding.weight
    model.layers[1] = model.layers[0]
    convert(model, exclude=None)
    assert model.lm_head.weight is model.embedding.weight
    assert model.layers[1] is model.layers[0]


def test_what_is_tied_to_a_layer_that_is_left_is_left() -> None:
    model = Block()
    model.lm_head.weight = model.embedding.weight
    convert(model)
    assert type(model.embedding) is nn.Embedding
    assert model.lm_head.weight is model.embedding.weight
    assert type(model.layers[0]) is BitLinear
    for include in ("embedding", ["layers.*", "embedding"], lambda name, module: isinstance(module, nn.Embedding)):
        model = Block()
        model.lm_head.weight = model.embedding.weight
        with pytest.raises(ArgumentError, match=r"include is also embedding \(tied to lm_head\), which is left"):
            convert(model, include=include)
        assert type(model.layers[0]) is nn.Linear


class Mystery(nn.Module):
    """A layer as no Bit layer replaces it, such as GPT-2's."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns))
        self.gain = nn.Parameter(torch.ones(rows, columns))


def test_matrices_of_other_modules_are_named_once_for_all_layers() -> None:
    model = nn.Sequential(*[nn.Sequential(Mystery(4, 3), nn.Linear(3, 4), Mystery(4, 1)) for _ in range(3)])
    with pytest.warns(UnconvertedWarning, match=r"stay in floating point: \*.\*.weight \[4, 3\] \(Mystery\)$"):
        convert(model, inplace=False)
    with pytest.warns(UnconvertedWarning, match=r"stay in floating point: 1.0.weight \[4, 3\] \(Mystery\)$"):
        convert(model, include=lambda name, module: name.startswith("1."))
    with pytest.raises(ArgumentError, match=r"\(no Bit layer replaces 0.weight \[2, 3\] \(Mystery\)\)"):
        convert(nn.Sequential(Mystery(2, 3)))


def test_one_layer_and_nothing_to_convert() -> None:
    assert type(convert(nn.Linear(3, 2))) is BitLinear
    assert type(convert(nn.Conv2d(3, 2, 1))) is BitConv2d
    with pytest.raises(
        ArgumentError,
        match=r"made of ReLU, Sequential, of which nothing is chosen, expected one of Conv2d, Embedding,.* Linear",
    ):
        convert(nn.Sequential(nn.ReLU()))
    with pytest.raises(ArgumentError):
        convert(convert(nn.Sequential(nn.Linear(3, 2))))


def test_deploy_is_all_or_nothing() -> None:
    model = convert(Block())
    with torch.no_grad():
        model.layers[1].weight[0, 0] = float("nan")
    model.train()
    with pytest.raises(QuantizationError, match=r"layers.1.weight is nan at \[0, 0\]"):
        deploy(model)
    assert model.training
    assert not model.layers[0].is_deployed
    with torch.no_grad():
        model.layers[1].weight[0, 0] = 0.0
    model.eval()
    indices = torch.randint(0, 16, (2, 3))
    evaluated = model(indices)
    assert torch.equal(deploy(model)(indices), evaluated)
    with pytest.raises(LayerStateError, match="deployed already"):
        deploy(model)
    with pytest.raises(LayerStateError, match=r"convert\(\) makes them"):
        deploy(nn.Sequential(nn.Linear(2, 2)))


def test_memory_report_counts_what_is_there() -> None:
    model = convert(Block(), exclude=None)
    model.lm_head.weight = model.embedding.weight
    dense = sum(tensor.nbytes for tensor in model.parameters())
    report = memory_report(model)
    assert report.now == dense
    deploy(model)
    held = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    assert memory_report(model).now == sum(held.values())
    assert "total" in str(report)
    assert "layers.0" in str(report)


def test_registry_takes_new_layers_and_refuses_taken_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitlayers.registry.LAYER_REGISTRY", registry := dict(LAYER_REGISTRY))
    assert {"BitLinear", "TernaryLinear", "BitConv2d", "BitEmbedding"} <= set(registry)

    @register_layer("ScaledLinear")
    class ScaledLinear(BitLinear):
        pass

    assert registry["ScaledLinear"] is ScaledLinear
    assert type(convert(nn.Sequential(nn.Linear(2, 2)))[0]) is ScaledLinear
    with pytest.raises(ArgumentError, match="name is 'BitLinear', expected another name"):
        register_layer("BitLinear")(ScaledLinear)
    with pytest.raises(ArgumentError, match="expected a subclass of BitLayer"):
        register_layer("Dense")(nn.Linear)  # type: ignore[type-var]


class Experts(nn.Module):
    """As mixtures of experts hold them: one Parameter for all."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, 8, 16))
        self.down_proj = nn.Parameter(torch.randn(4, 16, 8))


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.router = nn.Linear(8, 4)
        self.experts = Experts()
        self.mixer = nn.Conv1d(8, 8, 3)


def test_fused_experts_are_named() -> None:
    expected = (
        r"stay in floating point: experts.gate_up_proj \[4, 8, 16\] \(Experts\), "
        r"experts.down_proj \[4, 16, 8\] \(Experts\)$"
    )
    with pytest.warns(UnconvertedWarning, match=expected) as warned:
        model = convert(Mixture())
    assert warned[0].filename == __file__
    assert type(model.router) is BitLinear
    with pytest.raises(ArgumentError, match=r"\(no Bit layer replaces experts.gate_up_proj \[4, 8, 16\]"):
        convert(Mixture(), exclude="router")


@pytest.mark.filterwarnings("error")
def test_experts_that_are_left_on_purpose_are_not() -> None:
    convert(Mixture(), exclude="experts")
    convert(Mixture(), include="router")
    convert(Block())


def test_nothing_to_convert_lists_what_was_left_out() -> None:
    expected = (
        r"model is made of Linear, ReLU, Sequential, of which nothing is chosen "
        r"\(left out by include and exclude, or tied to what they leave: 0, 2\), expected one of "
        r"Conv2d, Embedding,.* Linear to convert"
    )
    with pytest.raises(ArgumentError, match=expected):
        convert(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), include="encoder")


def test_a_layer_that_cannot_be_converted_is_named_and_nothing_changes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Embedding(5, 4, max_norm=1.0))
    with pytest.raises(ArgumentError, match=r"^1: nn.Embedding.max_norm is 1.0, expected None"):
        convert(model)
    assert type(model[0]) is nn.Linear
    assert type(convert(model, exclude="1")[0]) is BitLinear


def test_a_single_bad_layer_has_no_name_to_tell() -> None:
    layer = BitLinear(3, 2)
    with torch.no_grad():
        layer.weight[1, 2] = float("inf")
    with pytest.raises(QuantizationError, match=r"^weight is inf at \[1, 2\], expected finite"):
        deploy(layer)
