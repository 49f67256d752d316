"""The transformers plug-in: what it refuses, and how it says so."""

from pathlib import Path

import pytest
import torch
from hugging_face_checkpoints import CLASSES, edit_config, random_model, rewrite, write_checkpoint
from plugin_models import PROJECTION, load
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from bitcore import BitQuantConfig, CheckpointError
from bitcore.exceptions import ArgumentError, ConfigError
from bitmodels.formats import BitNetQuantization
from bitmodels.plugins.transformers import BitLabQuantConfig


def test_what_was_saved_is_refused_where_the_plug_in_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would otherwise begin from random weights."""
    directory = write_checkpoint(tmp_path / "bitnet", random_model("llama", torch.float32), CLASSES["bitlinear"])
    load(directory).save_pretrained(tmp_path / "bitlab")
    monkeypatch.delitem(AUTO_QUANTIZATION_CONFIG_MAPPING, "bitlab")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "bitlab")


def damage(tensors: dict[str, Tensor], name: str, how: str) -> None:
    scale = name.replace(".weight", ".weight_scale")
    if how == "gone":
        del tensors[name]
    elif how == "without scale":
        del tensors[scale]
    elif how == "code 3":
        tensors[name][0, 0] = 3
    elif how == "nan":
        tensors[name if name in tensors and tensors[name].is_floating_point() else scale].view(-1)[0] = torch.nan
    elif how == "shape":
        tensors[name] = tensors[name][:-1].clone()
    elif how == "no norm bias":
        del tensors["model.layers.0.self_attn.q_proj.bias"]


@pytest.mark.parametrize(
    ("source", "how", "message"),
    [
        ("bitlinear", "gone", f"{PROJECTION}: weight is missing, expected a tensor beside weight_scale"),
        ("bitlinear", "without scale", f"{PROJECTION}: weight is torch.uint8 without a weight_scale"),
        ("bitlinear", "code 3", f"{PROJECTION}: .*weight is code 3 at"),
        ("bitlinear", "nan", f"{PROJECTION}: weight_scale is nan at"),
        ("bitlinear", "shape", f"{PROJECTION}: .*weight is of shape"),
        ("bitlinear", "no norm bias", "model.layers.0.self_attn.q_proj: bias missing"),
        ("online", "gone", f"{PROJECTION}: weight missing"),
        ("online", "nan", f"{PROJECTION}: weight is nan at"),
        ("dense", "shape", f"{PROJECTION}: weight is of shape"),
        ("bitlab", "gone", f"{PROJECTION}: weight_packed missing"),
        ("bitlab", "code 3", f"{PROJECTION}: packed is 3 at"),
        ("bitlab", "nan", f"{PROJECTION}: weight_scale is nan at"),
    ],
)
def test_damage_is_named(source: str, how: str, message: str, tmp_path: Path) -> None:
    original = random_model("llama", torch.float32, attention_bias=how == "no norm bias")
    name = f"{PROJECTION}.weight"
    if source == "dense":
        original.save_pretrained(tmp_path)
    elif source == "bitlab":
        load(write_checkpoint(tmp_path / "source", original, CLASSES["bitlinear"])).save_pretrained(tmp_path)
        name = f"{PROJECTION}.weight_packed"
    else:
        write_checkpoint(tmp_path, original, CLASSES[source])
    tensors = load_file(tmp_path / "model.safetensors")
    if source == "bitlab" and how == "nan":
        tensors[f"{PROJECTION}.weight_scale"][0] = torch.nan
    else:
        damage(tensors, name, how)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path) if source == "bitlab" else load(tmp_path)


def test_what_contradicts_itself_is_refused(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "a", random_model("llama", torch.float32), CLASSES["bitlinear"])
    with pytest.raises(CheckpointError, match="trainable is True, expected False: packed weights cannot be trained"):
        load(directory, BitLabQuantConfig(trainable=True))
    edit_config(
        directory, quantization_config=BitNetQuantization(modules_to_not_convert=["lm_head", "up_proj"]).model_dump()
    )
    with pytest.raises(CheckpointError, match=f"{PROJECTION}: weight_scale is that of a packed layer, expected none"):
        load(directory)
    edit_config(directory, quantization_config=CLASSES["online"].model_dump())
    with pytest.raises(
        CheckpointError, match=f"{PROJECTION}: weight_scale is that of a packed layer, expected a quant"
    ):
        load(directory)
    edit_config(directory, quantization_config=...)
    with pytest.raises(
        CheckpointError, match=f"{PROJECTION}: weight_scale is that of a packed layer, expected a quant"
    ):
        load(directory)
    small = random_model("llama", torch.float32)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(0.01)
    directory = write_checkpoint(tmp_path / "b", small, CLASSES["bitlinear"])
    rewrite(directory, lambda tensors: tensors.update({k: 1 / v for k, v in tensors.items() if "weight_scale" in k}))
    with pytest.raises(CheckpointError, match="linear_class bitlinear makes a typical weight"):
        load(directory)
    directory = write_checkpoint(tmp_path / "c", small, CLASSES["online"])
    edit_config(directory, quantization_config={**CLASSES["autobitlinear"].model_dump()})
    with pytest.raises(CheckpointError, match="expected packed, with a weight_scale beside it"):
        load(directory)


def test_requests_that_cannot_be_met(tmp_path: Path) -> None:
    random_model("llama", torch.float32, tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    with pytest.raises(ArgumentError, match=r"is \['q_proj'\], expected lm_head in it, too: its weight is tied"):
        load(tmp_path / "tied", BitLabQuantConfig(modules_to_not_convert=["q_proj"]))
    with pytest.raises(ArgumentError, match=r"of which nothing is chosen, expected an nn\.Linear"):
        load(tmp_path / "tied", BitLabQuantConfig(modules_to_not_convert=["model", "lm_head"]))
    for device_map in ({"model": "disk", "lm_head": "disk"}, {"model": 0, "lm_head": "cpu"}):
        with pytest.raises(ArgumentError, match="expected the CPU alone, or GPUs alone"):
            load(tmp_path / "tied", device_map=device_map, offload_folder=str(tmp_path))
    directory = write_checkpoint(tmp_path / "bitnet", random_model("llama", torch.float32), CLASSES["bitlinear"])
    with pytest.raises(ArgumentError, match="weight_dtype is int4, expected ternary"):
        load(directory, BitLabQuantConfig(BitQuantConfig.int4()))
    with pytest.raises(ArgumentError, match="expected None: the checkpoint has its own"):
        load(directory, BitLabQuantConfig(modules_to_not_convert=["lm_head"]))


def test_configs_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="did you mean weight_dtype"):
        BitLabQuantConfig({"weight_dtyp": "ternary"})
    with pytest.raises(ArgumentError, match="BitLabQuantConfig is given bits, expected only quant_config, "):
        BitLabQuantConfig(bits=2)
    with pytest.raises(ArgumentError, match="quant_method is 'bitnet', expected 'bitlab'"):
        BitLabQuantConfig(quant_method="bitnet")
    with pytest.raises(ArgumentError, match="expected plain names"):
        BitLabQuantConfig(modules_to_not_convert=["layers.(0|1)+"])
    for wrong in ("lm_head", 3):
        with pytest.raises(ArgumentError, match=rf"modules_to_not_convert is {wrong!r}, expected a list of names"):
            BitLabQuantConfig(modules_to_not_convert=wrong)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="quantization_config: layers: "):
        BitLabQuantConfig(layers=[{"modules": ["a"]}])
    group = {"quant_config": {}, "deployed": True, "modules": ["a", "b", "a"]}
    with pytest.raises(CheckpointError, match="layers has a twice"):
        BitLabQuantConfig(layers=[group])
    config = BitLabQuantConfig(BitQuantConfig.weight_only(), ["lm_head"], True, [{**group, "modules": ["a"]}])
    assert BitLabQuantConfig(**config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["model.layers.7.mlp"], "layers has model.layers.7.mlp, which a LlamaForCausalLM has not"),
        (["model.norm"], "layers has model.norm, a LlamaRMSNorm: it has no Bit layer"),
    ],
)
def test_a_config_that_names_other_layers_is_refused(modules: list[str], message: str, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "bitnet", random_model("llama", torch.float32), CLASSES["bitlinear"])
    load(directory).save_pretrained(tmp_path / "bitlab")
    layers = [{"quant_config": {}, "deployed": True, "modules": modules}]
    edit_config(tmp_path / "bitlab", quantization_config={"quant_method": "bitlab", "layers": layers})
    with pytest.raises(CheckpointError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path / "bitlab")
