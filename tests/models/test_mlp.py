import pytest
import torch
from torch import nn

from bitcore import BitQuantConfig
from bitcore.exceptions import ArgumentError, ConfigError, LayerStateError
from bitlayers import BitLinear
from bitmodels import AutoBitModel, BitModelConfig, register_model
from bitmodels.mlp import BitMLPConfig, BitMLPModel


@pytest.mark.parametrize("quant_config", [None, BitQuantConfig.weight_only(), BitQuantConfig.int4(16)])
def test_quant_config_is_used(quant_config: BitQuantConfig | None) -> None:
    model = AutoBitModel.from_config(BitMLPConfig(in_channels=20, hidden_dim=16), quant_config=quant_config)
    configs = {layer.quant_config for layer in model.modules() if isinstance(layer, BitLinear)}
    assert configs == {quant_config or BitQuantConfig()}
    assert model(torch.randn(2, 20)).shape == (2, 10)


@pytest.mark.parametrize(("first", "last"), [(False, False), (True, False), (False, True), (True, True)])
def test_first_and_last_layer_in_full_precision(first: bool, last: bool) -> None:
    model = BitMLPModel(BitMLPConfig(n_layers=4, full_precision_first=first, full_precision_last=last))
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [type(linear) for linear in linears] == [
        nn.Linear if first else BitLinear,
        BitLinear,
        BitLinear,
        nn.Linear if last else BitLinear,
    ]
    assert [linear.in_features for linear in linears] == [256, 128, 128, 128]


@pytest.mark.parametrize("n_layers", [1, 2, 5])
def test_depth(n_layers: int) -> None:
    model = BitMLPModel(BitMLPConfig(n_layers=n_layers, in_channels=20, hidden_dim=16, out_channels=3))
    assert sum(isinstance(module, BitLinear) for module in model.modules()) == n_layers
    x = torch.randn(4, 20)
    y = model.eval()(x)
    assert torch.equal(model.deploy()(x), y)
    with pytest.raises(LayerStateError, match="BitMLPModel is deployed"):
        model.train()
    assert not any(module.training for module in model.modules())


def test_wrong_configs_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_layer"):
        BitMLPConfig(n_layer=3)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="hidden_dim"):
        BitMLPConfig(hidden_dim=0)

    class OtherConfig(BitModelConfig):
        pass

    with pytest.raises(ArgumentError, match="config is a OtherConfig, expected one of BitCNNConfig, BitMLPConfig, "):
        AutoBitModel.from_config(OtherConfig())
    with pytest.raises(ArgumentError, match="config is a OtherConfig, expected a BitMLPConfig"):
        BitMLPModel(OtherConfig())  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="name is 'mlp', expected another name"):
        register_model("mlp")(type("Other", (BitMLPModel,), {}))
    with pytest.raises(ArgumentError, match="name is 5, expected a string"):
        register_model(5)(BitMLPModel)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="expected a subclass of BitModelBase"):
        register_model("other")(dict)  # type: ignore[type-var]


def test_models_are_listed() -> None:
    assert {"cnn", "mlp", "transformer", "vit"} <= set(AutoBitModel.list_models())
