"""Hugging Face checkpoints that are refused: configs and tensors that do not fit, damaged or unknown ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face_checkpoints import CLASSES, edit_config, random_model, rewrite, write_checkpoint

from bitcore import BitQuantConfig, CheckpointError
from bitcore.exceptions import ArgumentError, ConfigError
from bitmodels import AutoBitModel

PROJECTION = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def bitlinear(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "bitlinear", random_model("llama", torch.float32), CLASSES["bitlinear"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["MistralForCausalLM"]},
            r"architectures \['MistralForCausalLM'\], expected one of LlamaForC",
        ),
        ({"architectures": ...}, "architectures None"),
        ({"architectures": [{}]}, r"architectures \[\{\}\], expected one of"),
        ({"hidden_size": ...}, "hidden_size"),
        ({"vocab_size": 2**63}, "vocab_size"),
        ({"head_dim": 2**62, "num_attention_heads": 2**40}, "(?s)num_heads.*head_dim"),
        ({"hidden_size": "64"}, "is of shape"),
        ({"num_hidden_layers": 3}, r"model.layers.2.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 1}, r"model.layers.1.* is not expected"),
        ({"intermediate_size": 64}, r"gate_proj.weight is of shape \[48, 32\], expected \[64, 32\]"),
        ({"num_hidden_layers": 10**9}, "num_layers"),
        (
            {
                "num_hidden_layers": 10**9,
                "quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]},
            },
            "num_layers",
        ),
        ({"num_hidden_layers": 9999}, "9999 layers of 21 tensors"),
        ({"num_key_value_heads": 3}, "num_kv_heads is 3, expected a divisor"),
        ({"hidden_act": "tanh"}, "activation"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "secret": 1}}, "secret"),
        ({"dtype": "int8"}, "the dtype is int8, expected one of float32"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method 'gptq', expected 'bitnet'"),
        ({"quantization_config": ...}, "no quantization_config"),
        (
            {"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["(a+)+"]}},
            r"modules_to_not_convert has '\(a\+\)\+', expected plain names",
        ),
        (
            {"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["up_proj"]}},
            r"up_proj.weight: the weight is packed in bitnet, expected in floating point",
        ),
        ({"tie_word_embeddings": True, "vocab_size": 49}, "embed_tokens.weight is of shape"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit_are_refused(bitlinear: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(bitlinear, **changes)
    with pytest.raises(CheckpointError, match=message):
        AutoBitModel.from_pretrained(bitlinear)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"model.norm.weight is missing"),
        (lambda tensors: tensors.pop(f"{PROJECTION}_scale"), r"up_proj.weight_scale is missing beside"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), "extra is not expected"),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}),
            r"model.norm.weight: the tensor is torch.int8, expected in floating point",
        ),
        (lambda tensors: tensors[PROJECTION].fill_(255), r"up_proj.weight .*: weight is code 3 at \[0, 0\]"),
        (lambda tensors: tensors[f"{PROJECTION}_scale"].zero_(), r"up_proj.weight_scale: weight_scale is 0.0"),
        (lambda tensors: tensors[f"{PROJECTION}_scale"].neg_(), r"weight_scale is -"),
        (lambda tensors: tensors[f"{PROJECTION}_scale"].fill_(torch.nan), "weight_scale is nan"),
        (
            lambda tensors: [tensors[name].fill_(0.01) for name in tensors if name.endswith("weight_scale")],
            "linear_class bitlinear makes a typical weight ±100",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(bitlinear: Path, change: Any, message: str) -> None:
    rewrite(bitlinear, change)
    with pytest.raises(CheckpointError, match=message):
        AutoBitModel.from_pretrained(bitlinear)


def test_floats_in_a_packed_checkpoint_are_refused(bitlinear: Path) -> None:
    def unpack(tensors: dict[str, torch.Tensor]) -> None:
        tensors.pop(f"{PROJECTION}_scale")
        tensors[PROJECTION] = torch.randn(48, 32)

    rewrite(bitlinear, unpack)
    with pytest.raises(CheckpointError, match=r"the weight is torch.float32, expected packed, with a weight_scale"):
        AutoBitModel.from_pretrained(bitlinear)


def test_an_ordinary_model_is_refused_with_the_values_of_a_row(tmp_path: Path) -> None:
    random_model("llama", torch.float32).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"q_proj.weight: weight is not ternary: row 0 has 32 magnitudes"):
        AutoBitModel.from_pretrained(tmp_path)


def test_masters_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    original = random_model("llama", torch.float32)
    with torch.no_grad():
        original.get_parameter(PROJECTION)[2, 3] = torch.inf
    with pytest.raises(CheckpointError, match=r"up_proj.weight: weight is inf at \[2, 3\]"):
        AutoBitModel.from_pretrained(write_checkpoint(tmp_path, original, CLASSES["online"]))


def test_options_that_a_ternary_model_cannot_have_are_refused(bitlinear: Path) -> None:
    with pytest.raises(ArgumentError, match=r"quant_config.weight_dtype is int4, expected ternary"):
        AutoBitModel.from_pretrained(bitlinear, quant_config=BitQuantConfig.int4())
    with pytest.raises(ArgumentError, match=r"quant_config is '2bit', expected a BitQuantConfig"):
        AutoBitModel.from_pretrained(bitlinear, quant_config="2bit")
    with pytest.raises(ConfigError, match="head_dtype"):
        AutoBitModel.from_pretrained(bitlinear, head_dtype="int2")
