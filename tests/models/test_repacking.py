"""Ternary layers of a saved model in another storage format, or with other activations."""

from pathlib import Path

import pytest
import torch
from transformers_of_all_kinds import make

from bitcore import BitQuantConfig
from bitcore.exceptions import ArgumentError
from bitlayers import BitLinear
from bitmodels import AutoBitModel
from bitmodels.cnn import BitCNNConfig, BitCNNModel
from bitmodels.repacking import repack

IDS = torch.arange(18).reshape(2, 9)
BASE3 = BitQuantConfig(storage_format="base3")


@pytest.mark.parametrize("kind", ["llama", "bitnet", "int4 head", "tied int8 head"])
@torch.no_grad()
def test_there_and_back_is_the_same_model(kind: str, tmp_path: Path) -> None:
    original = make(kind).deploy()
    original.save_pretrained(tmp_path / "2bit")
    model = AutoBitModel.from_pretrained(tmp_path / "2bit", quant_config=BASE3)
    assert model.quant_config.storage_format == "base3"
    assert torch.equal(model(IDS), original(IDS))
    model.save_pretrained(tmp_path / "base3")
    again = AutoBitModel.from_pretrained(tmp_path / "base3")
    assert torch.equal(again(IDS), original(IDS))
    repack(again, BitQuantConfig())
    assert again.quant_config == original.quant_config
    state, expected = again.state_dict(), original.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


@torch.no_grad()
def test_convolutions_and_rows_that_are_no_whole_bytes() -> None:
    model = BitCNNModel(BitCNNConfig(), BitQuantConfig(weight_granularity="per_channel")).deploy()
    images = torch.randn(2, model.config.in_channels, 16, 16)
    expected = model(images)
    repack(model, BASE3)
    assert torch.equal(model(images), expected)
    assert model.quant_config == BitQuantConfig(storage_format="base3", weight_granularity="per_channel")


@torch.no_grad()
def test_other_activations_are_computed_with(tmp_path: Path) -> None:
    original = make("llama").deploy()
    original.save_pretrained(tmp_path)
    model = AutoBitModel.from_pretrained(tmp_path, quant_config=BitQuantConfig.weight_only())
    layer, before = (each.model.layers[0].mlp.down_proj for each in (model, original))
    assert isinstance(layer, BitLinear)
    x = torch.randn(3, layer.in_features)
    torch.testing.assert_close(layer(x), x @ (layer.qweight.float() * layer.qweight_scale).T)
    assert not torch.equal(layer(x), before(x))
    assert layer.quant_config.weight_quantizer == before.quant_config.weight_quantizer


def test_masters_stay_and_are_packed_so_when_they_are_deployed() -> None:
    model = make("llama").eval()
    repack(model, BASE3)
    with torch.no_grad():
        logits = model(IDS)
    assert not model.is_deployed
    assert torch.equal(model.deploy()(IDS), logits)
    layer = model.model.layers[0].mlp.up_proj
    assert layer.weight_packed.shape[1] == -(-layer.in_features // 5)


def test_weights_that_are_not_ternary_are_refused() -> None:
    model = make("llama").deploy()
    before = model.quant_config
    with pytest.raises(ArgumentError, match=r"quant_config.weight_dtype is int4, expected ternary"):
        repack(model, BitQuantConfig.int4())
    with pytest.raises(ArgumentError, match="quant_config"):
        repack(model, "base3")  # type: ignore[arg-type]
    assert model.quant_config == before
