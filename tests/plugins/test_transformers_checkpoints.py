"""The transformers plug-in: from_pretrained on checkpoints that exist, and back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face_checkpoints import CLASSES, SIZES, edit_config, random_model, rewrite, write_checkpoint
from plugin_models import PROJECTION, ids, load, logits_of
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM
from transformers.trainer_utils import validate_quantization_for_training
from transformers_of_all_kinds import TURNED, distance

from bitcore import BitQuantConfig
from bitcore.exceptions import LayerStateError
from bitcore.packed_weight import PackedWeight
from bitlayers import BitLinear, convert, deploy
from bitmodels import AutoBitModel
from bitmodels.plugins.transformers import BitLabQuantConfig


def bit_linears(model: nn.Module) -> dict[str, BitLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, BitLinear)}


def assert_same_layers(model: nn.Module, other: nn.Module, count: int = 14) -> None:
    """The same bits in every deployed layer, and so from every deployed layer."""
    layers, others = bit_linears(model), bit_linears(other)
    assert layers.keys() == others.keys()
    assert len(layers) == count
    for name, layer in layers.items():
        assert layer.is_deployed
        assert layer.quant_config == others[name].quant_config
        assert torch.equal(layer.weight_packed, others[name].weight_packed)
        assert torch.equal(layer.weight_scale, others[name].weight_scale)
        x = torch.randn(3, layer.in_features)
        assert torch.equal(layer(x), others[name](x))


@pytest.mark.parametrize("architecture", ["llama", "bitnet"])
@pytest.mark.parametrize("linear_class", CLASSES)
@pytest.mark.parametrize("tied", [False, True])
def test_bitnet_checkpoints_run_on_our_layers(architecture: str, linear_class: str, tied: bool, tmp_path: Path) -> None:
    original = random_model(architecture, torch.float32, tie_word_embeddings=tied)
    directory = write_checkpoint(tmp_path / "bitnet", original, CLASSES[linear_class])
    model, own, tokens = load(directory), AutoBitModel.from_pretrained(directory), ids()
    assert_same_layers(model, own)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    logits = logits_of(model, tokens)
    assert distance(logits, own(tokens)) < TURNED  # norms and attention are transformers' own
    assert distance(logits, logits_of(AutoModelForCausalLM.from_pretrained(directory), tokens)) < TURNED

    model.save_pretrained(tmp_path / "bitlab")
    tensors = load_file(tmp_path / "bitlab" / "model.safetensors")
    assert tensors[f"{PROJECTION}.weight_packed"].dtype == torch.uint8
    assert tensors[f"{PROJECTION}.weight_scale"].dtype == torch.float32
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "bitlab")
    assert_same_layers(again, model)
    assert torch.equal(logits_of(again, tokens), logits)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("linear_class", CLASSES)
def test_bfloat16_is_as_exact_as_transformers(linear_class: str, tmp_path: Path) -> None:
    """transformers rounds the sum of each product to bfloat16; a float32 model of the same weights is the truth."""
    directory = write_checkpoint(tmp_path, random_model("bitnet", torch.bfloat16), CLASSES[linear_class])
    tokens = torch.randint(SIZES["vocab_size"], (4, 20))
    truth = logits_of(load(directory, dtype=torch.float32), tokens)
    got = logits_of(load(directory), tokens)
    expected = logits_of(AutoModelForCausalLM.from_pretrained(directory), tokens)
    assert truth.dtype == torch.float32
    assert got.dtype == expected.dtype == torch.bfloat16
    assert distance(got, truth) < 2 * distance(expected, truth)
    assert distance(got, expected) < 0.3


def test_ternary_floats_keep_values_scales_and_activations(tmp_path: Path) -> None:
    """TriLM's scales are those of rows or shards of rows, and its activations are floats."""
    directory = write_checkpoint(tmp_path / "trilm", random_model("llama", torch.float16, hidden_size=64), None)

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.self_attn.q_proj.weight"] *= torch.arange(1, 65).reshape(-1, 1) / 64
        tensors["model.layers.0.self_attn.k_proj.weight"][:, :32] *= 0.5
        tensors.update({name: tensor.half() for name, tensor in tensors.items()})

    rewrite(directory, change)
    model, own, tokens = load(directory), AutoBitModel.from_pretrained(directory), ids()
    assert_same_layers(model, own)
    attention = model.model.layers[0].self_attn
    granularities = [getattr(attention, name).quant_config.weight_granularity for name in ("q_proj", "k_proj")]
    assert granularities == ["per_channel", "per_group"]
    assert attention.q_proj.quant_config.activation_dtype == "float32"
    model.save_pretrained(tmp_path / "bitlab")
    assert torch.equal(
        logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "bitlab"), tokens), logits_of(model, tokens)
    )
    config = BitQuantConfig(storage_format="base3")
    assert_same_layers(
        load(directory, BitLabQuantConfig(config)), AutoBitModel.from_pretrained(directory, quant_config=config)
    )


@pytest.mark.parametrize("config", [None, BitQuantConfig.weight_only(), BitQuantConfig.int4(group_size=16)])
@pytest.mark.parametrize("tied", [False, True])
def test_dense_checkpoints_are_quantized(config: BitQuantConfig | None, tied: bool, tmp_path: Path) -> None:
    original = random_model("llama", torch.float32, tie_word_embeddings=tied)
    original.save_pretrained(tmp_path / "dense")
    expected = deploy(convert(original, config, exclude=("lm_head", "embed_tokens")))
    model, tokens = load(tmp_path / "dense", BitLabQuantConfig(config)), ids()
    assert_same_layers(model, expected)
    assert torch.equal(logits_of(model, tokens), logits_of(expected, tokens))
    assert type(model.lm_head) is nn.Linear
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    model.save_pretrained(tmp_path / "bitlab")
    assert_same_layers(AutoModelForCausalLM.from_pretrained(tmp_path / "bitlab"), expected)
    headless = AutoModel.from_pretrained(tmp_path / "bitlab")
    assert torch.equal(headless(tokens).last_hidden_state, expected.model(tokens).last_hidden_state)


def test_masters_are_quantized_as_the_file_has_them(tmp_path: Path) -> None:
    original = random_model("llama", torch.float32)
    original.save_pretrained(tmp_path)
    model = load(tmp_path, dtype=torch.bfloat16)
    packed = PackedWeight.from_float(original.get_parameter(f"{PROJECTION}.weight"), BitQuantConfig())
    layer = model.get_submodule(PROJECTION)
    assert torch.equal(layer.weight_packed, packed.packed)
    assert torch.equal(layer.weight_scale, packed.scale)
    assert model.model.embed_tokens.weight.dtype == model.model.norm.weight.dtype == torch.bfloat16
    assert logits_of(model, ids()).dtype == torch.bfloat16


def test_trainable_masters_have_the_dtype_of_the_model(tmp_path: Path) -> None:
    random_model("llama", torch.float32).save_pretrained(tmp_path)
    model = load(tmp_path, BitLabQuantConfig(trainable=True), dtype=torch.bfloat16).train()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    tokens = ids()
    model(tokens, labels=tokens).loss.backward()
    assert model.get_parameter(f"{PROJECTION}.weight").grad.dtype == torch.bfloat16


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_maps_count_packed_bytes(device_map: Any, tmp_path: Path) -> None:
    random_model("llama", torch.float32).save_pretrained(tmp_path)
    model, tokens = load(tmp_path, device_map=device_map), ids()
    assert torch.equal(logits_of(model, tokens), logits_of(load(tmp_path), tokens))
    with torch.device("meta"):
        meta = convert(random_model("llama", torch.bfloat16), exclude=("lm_head", "embed_tokens"))
    sizes = {name: model.hf_quantizer.param_element_size(meta, name, p) for name, p in meta.named_parameters()}
    assert sizes["lm_head.weight"] == sizes["model.norm.weight"] == 2
    assert sizes[f"{PROJECTION}.weight"] == pytest.approx(0.25, abs=0.01)


def test_modules_to_not_convert(tmp_path: Path) -> None:
    random_model("llama", torch.float32).save_pretrained(tmp_path / "dense")
    model = load(tmp_path / "dense", BitLabQuantConfig(modules_to_not_convert=["model.layers.0", "o_proj"]))
    assert set(bit_linears(model)) == {
        "lm_head",
        *(f"model.layers.1.{name}_proj" for name in ("self_attn.q", "self_attn.k", "self_attn.v")),
        *(f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")),
    }
    model.save_pretrained(tmp_path / "bitlab")
    tokens = ids()
    assert torch.equal(
        logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "bitlab"), tokens), logits_of(model, tokens)
    )


@pytest.mark.parametrize("source", ["dense", "online"])
def test_masters_are_trained_saved_and_deployed(source: str, tmp_path: Path) -> None:
    original = random_model("llama", torch.float32)
    if source == "dense":
        original.save_pretrained(tmp_path / "masters")
    else:
        write_checkpoint(tmp_path / "masters", original, CLASSES["online"])
    model, tokens = load(tmp_path / "masters", BitLabQuantConfig(trainable=True)), ids()
    convert(original, exclude=("lm_head", "embed_tokens")).eval()
    assert torch.equal(logits_of(model, tokens), logits_of(original, tokens))
    validate_quantization_for_training(model)
    optimizer = torch.optim.SGD(model.train().parameters(), 1.0)
    before = model.get_parameter(f"{PROJECTION}.weight").detach().clone()
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    assert not torch.equal(model.get_parameter(f"{PROJECTION}.weight"), before)

    model.eval().save_pretrained(tmp_path / "trained")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    expected = logits_of(model, tokens)
    assert torch.equal(logits_of(trained, tokens), expected)
    assert trained.train().get_parameter(f"{PROJECTION}.weight").requires_grad
    deploy(trained).save_pretrained(tmp_path / "deployed")
    deployed = AutoModelForCausalLM.from_pretrained(tmp_path / "deployed")
    assert torch.equal(logits_of(deployed, tokens), expected)
    with pytest.raises(ValueError, match="fine-tuning on purely quantized models"):
        validate_quantization_for_training(deployed)
    with pytest.raises(LayerStateError, match="no master weight to train"):
        deployed.train()


@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
def test_biases_and_inner_norms(linear_class: str, tmp_path: Path) -> None:
    """autobitlinear multiplies its bias by the scale of the weight."""
    quantization = CLASSES[linear_class].model_copy(update={"use_rms_norm": True, "rms_norm_eps": 1e-3})
    original = random_model("llama", torch.float32, attention_bias=True)
    directory = write_checkpoint(tmp_path / "bitnet", original, CLASSES["bitlinear"])

    def add_norms(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            size = tensors[name].shape[1]
            tensors[name.replace("_proj.weight", "_proj.rms_norm.weight")] = torch.rand(size) + 0.5
        if linear_class == "autobitlinear":
            tensors.update({name: 1 / tensors[name] for name in tensors if name.endswith("weight_scale")})

    rewrite(directory, add_norms)
    edit_config(directory, quantization_config=quantization.model_dump())
    model, tokens = load(directory), ids()
    assert_same_layers(model, AutoBitModel.from_pretrained(directory))
    assert model.get_submodule(PROJECTION).norm.eps == 1e-3
    expected = logits_of(AutoModelForCausalLM.from_pretrained(directory), tokens)
    assert distance(logits_of(model, tokens), expected) < TURNED
    model.save_pretrained(tmp_path / "bitlab")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "bitlab")
    assert torch.equal(logits_of(again, tokens), logits_of(model, tokens))
    assert not any(parameter.requires_grad for name, parameter in again.named_parameters() if "_proj.bias" in name)
