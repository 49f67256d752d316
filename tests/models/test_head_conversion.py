"""Embeddings and head of a saved model in another dtype."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers_of_all_kinds import make

from bitcore.exceptions import ArgumentError, DtypeError
from bitcore.quantizers import dequantize
from bitlayers import BitLayer
from bitmodels import AutoBitModel, export_hf
from bitmodels.head_conversion import convert_head
from bitmodels.mlp import BitMLPConfig, BitMLPModel

IDS = torch.arange(18).reshape(2, 9)


def equal_states(model: nn.Module, other: nn.Module) -> bool:
    state, others = model.state_dict(), other.state_dict()
    return state.keys() == others.keys() and all(torch.equal(others[name], state[name]) for name in state)


@pytest.mark.parametrize("head_dtype", ["int8", "int4"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_packed_model_gets_the_head_that_foreign_loading_makes(
    head_dtype: str, tied: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    original = make("llama", tie_embeddings=tied, vocab_size=700).deploy().to(dtype)
    export_hf(original, tmp_path / "hf")
    original.save_pretrained(tmp_path / "own")
    expected = AutoBitModel.from_pretrained(tmp_path / "hf", head_dtype=head_dtype)
    model = AutoBitModel.from_pretrained(tmp_path / "own", head_dtype=head_dtype)
    assert model.config.head_dtype == model.model.config.head_dtype == head_dtype
    assert equal_states(model, expected)
    assert torch.equal(model(IDS), expected(IDS))
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(AutoBitModel.from_pretrained(tmp_path / "again")(IDS), expected(IDS))


@torch.no_grad()
def test_masters_are_kept_and_quantized_when_they_are_deployed(tmp_path: Path) -> None:
    original = make("llama")
    original.save_pretrained(tmp_path / "own")
    model = AutoBitModel.from_pretrained(tmp_path / "own", head_dtype="int8").train()
    assert not model.is_deployed
    assert equal_states(model, original)
    expected = AutoBitModel.from_pretrained(tmp_path / "own").deploy()
    convert_head(expected, "int8")
    assert equal_states(model.deploy(), expected)


@pytest.mark.parametrize("kind", ["int4 head", "tied int8 head"])
@torch.no_grad()
def test_back_to_floats_as_they_are_computed_with(kind: str, tmp_path: Path) -> None:
    original = make(kind).deploy()
    original.save_pretrained(tmp_path / "own")
    model = AutoBitModel.from_pretrained(tmp_path / "own", head_dtype="float")
    assert model.config.head_dtype == "float"
    for name in ("model.embed_tokens", "lm_head") if original.lm_head is not None else ("model.embed_tokens",):
        table, dense = original.get_submodule(name), model.get_submodule(name)
        assert isinstance(table, BitLayer)
        assert type(dense) is table.dense_type
        assert torch.equal(dense.weight, dequantize(table.qweight, table.qweight_scale, None, table.quant_config))
    torch.testing.assert_close(model(IDS), original(IDS))
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(AutoBitModel.from_pretrained(tmp_path / "again")(IDS), model(IDS))


@torch.no_grad()
def test_from_few_bits_to_fewer() -> None:
    model, floats = make("tied int8 head").deploy(), make("llama", tie_embeddings=True).deploy()
    table = model.model.embed_tokens
    floats.model.embed_tokens.weight.copy_(dequantize(table.qweight, table.qweight_scale, None, table.quant_config))
    for each in (model, floats):
        convert_head(each, "int4")
    table, expected = model.model.embed_tokens, floats.model.embed_tokens
    assert model.config.head_dtype == "int4"
    assert torch.equal(table.qweight, expected.qweight)
    assert torch.equal(table.qweight_scale, expected.qweight_scale)


@torch.no_grad()
def test_generation_goes_on_with_the_new_head() -> None:
    model = make("llama").deploy()
    convert_head(model, "int8")
    cache = model.new_cache(2)
    model.next_logits(IDS[:, :3], None, cache)
    step = model.steps_from(cache)
    assert step is not None
    torch.testing.assert_close(step(IDS[:, 3:4]), model(IDS[:, :4])[:, -1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "head_dtype", "dtype", "error", "message"),
    [
        ("tied int8 head", "float", torch.bfloat16, DtypeError, "dtype is torch.bfloat16, expected torch.float32: "),
        ("int4 head", "float", torch.float16, DtypeError, "dtype is torch.float16, expected torch.float32"),
        ("ternary head", "int8", None, ArgumentError, "head_dtype is 'int8', expected None: the head is ternary"),
        ("llama", "int3", None, ArgumentError, "head_dtype is 'int3', expected float, int8 or int4"),
        ("llama", "ternary", None, ArgumentError, "head_dtype is 'ternary', expected float, int8 or int4"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(
    kind: str, head_dtype: str, dtype: torch.dtype | None, error: type, message: str, tmp_path: Path
) -> None:
    model = make(kind).deploy()
    model.save_pretrained(tmp_path)
    with pytest.raises(error, match=message):
        AutoBitModel.from_pretrained(tmp_path, head_dtype=head_dtype, dtype=dtype)
    before = AutoBitModel.from_pretrained(tmp_path)
    with pytest.raises(error, match=message):
        convert_head(model, head_dtype, dtype)
    assert equal_states(model, before)
    assert model.config == before.config


def test_other_models_have_no_such_head(tmp_path: Path) -> None:
    BitMLPModel(BitMLPConfig(in_channels=8, hidden_dim=8, out_channels=4)).save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="head_dtype is int8, expected None: a mlp is no language model"):
        AutoBitModel.from_pretrained(tmp_path, head_dtype="int8")
