"""What the transformers plug-in saved, read by AutoBitModel; and what it says of BitLab's own checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face_checkpoints import CLASSES, edit_config, random_model, rewrite, write_checkpoint
from language_models import language_model
from plugin_models import PROJECTION, ids, load, logits_of
from real_tokenizers import real_tokenizer
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers_of_all_kinds import TURNED, distance, make

from bitcore import BitQuantConfig, CheckpointError
from bitcore.exceptions import ArgumentError
from bitlayers import BitLayer, convert, deploy
from bitmodels import AutoBitModel
from bitmodels.formats import inspect_checkpoint
from bitmodels.mlp import BitMLPConfig, BitMLPModel
from bitmodels.plugins.transformers import BitLabQuantConfig, attach_quantizer
from bitmodels.transformer import BitTransformerModel


def assert_same(own: nn.Module, plugin: nn.Module) -> None:
    """The same bits of all weights, and the same logits; norms and attention are transformers' own in one of them."""
    state, other = own.state_dict(), plugin.state_dict()
    assert set(state) <= set(other)  # a tied head has a name there
    assert set(other) - set(state) <= {"lm_head.weight"}
    assert all(torch.equal(tensor, other[name]) for name, tensor in state.items())
    configs = {name: layer.quant_config for name, layer in own.named_modules() if isinstance(layer, BitLayer)}
    for name, layer in plugin.named_modules():
        if isinstance(layer, BitLayer):
            assert configs.pop(name) == layer.quant_config
    assert configs == {}
    tokens = ids()
    logits = own(tokens)
    assert distance(logits, logits_of(plugin, tokens)) < (TURNED if logits.dtype == torch.float32 else 0.3)


@pytest.mark.parametrize("architecture", ["llama", "bitnet"])
@pytest.mark.parametrize("linear_class", CLASSES)
@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_bitnet_checkpoints_that_were_saved_again(
    architecture: str, linear_class: str, tied: bool, tmp_path: Path
) -> None:
    original = random_model(architecture, torch.float32, tie_word_embeddings=tied)
    directory = write_checkpoint(tmp_path / "bitnet", original, CLASSES[linear_class])
    plugin = load(directory)
    plugin.save_pretrained(tmp_path / "bitlab")
    own = AutoBitModel.from_pretrained(tmp_path / "bitlab")
    assert isinstance(own, BitTransformerModel)
    assert own.is_deployed
    assert not own.training
    assert_same(own, plugin)
    tokens = ids()
    assert torch.equal(own(tokens), AutoBitModel.from_pretrained(directory)(tokens))
    own.save_pretrained(tmp_path / "own")
    assert torch.equal(AutoBitModel.from_pretrained(tmp_path / "own")(tokens), own(tokens))


@pytest.mark.parametrize(
    "config", [BitQuantConfig(storage_format="base3"), BitQuantConfig.weight_only(), BitQuantConfig.int4(group_size=16)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_quantized_checkpoints_with_every_config(config: BitQuantConfig, dtype: torch.dtype, tmp_path: Path) -> None:
    random_model("llama", dtype, attention_bias=True).save_pretrained(tmp_path / "dense")
    plugin = load(tmp_path / "dense", BitLabQuantConfig(config, modules_to_not_convert=["lm_head", "down_proj"]))
    plugin.save_pretrained(tmp_path / "bitlab", max_shard_size="20kB")
    own = AutoBitModel.from_pretrained(tmp_path / "bitlab")
    assert own.quant_config == config
    assert own.config.full_precision == tuple(f"model.layers.{layer}.mlp.down_proj" for layer in range(2))
    assert own.model.norm.weight.dtype == dtype
    assert_same(own, plugin)


@torch.no_grad()
def test_masters_are_packed_or_kept_for_training(tmp_path: Path) -> None:
    random_model("llama", torch.float32).save_pretrained(tmp_path / "dense")
    plugin = load(tmp_path / "dense", BitLabQuantConfig(trainable=True))
    plugin.save_pretrained(tmp_path / "trained")
    kept = AutoBitModel.from_pretrained(tmp_path / "trained", deploy=False).train()
    assert not kept.is_deployed
    assert_same(kept.eval(), plugin.eval())
    own = AutoBitModel.from_pretrained(tmp_path / "trained")
    assert own.is_deployed
    assert torch.equal(own(ids()[:1]).isfinite(), torch.ones(1, 9, 48, dtype=torch.bool))
    assert_same(own, deploy(plugin))


@torch.no_grad()
def test_norms_within_layers_and_a_converted_head(tmp_path: Path) -> None:
    model = random_model("llama", torch.float32)
    attach_quantizer(deploy(convert(model, include=["*proj", "lm_head"], exclude=()))).save_pretrained(tmp_path / "a")
    own = AutoBitModel.from_pretrained(tmp_path / "a")
    assert own.config.head_dtype == "ternary"
    assert_same(own, model)
    quantization = CLASSES["bitlinear"].model_copy(update={"use_rms_norm": True, "rms_norm_eps": 1e-4})
    directory = write_checkpoint(tmp_path / "b", random_model("llama", torch.float32), quantization)
    scales = {}

    def add_norms(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("proj.weight")]:
            scales[name] = 1 + 0.1 * torch.randn(tensors[name].shape[1])
        tensors.update({name.replace(".weight", ".rms_norm.weight"): scale for name, scale in scales.items()})

    rewrite(directory, add_norms)
    plugin = load(directory)
    plugin.save_pretrained(tmp_path / "c")
    own = AutoBitModel.from_pretrained(tmp_path / "c")
    assert own.config.linear_norm_eps == 1e-4
    assert_same(own, plugin)


@torch.no_grad()
def test_options(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "a", random_model("llama", torch.float32), CLASSES["bitlinear"])
    load(directory).save_pretrained(tmp_path / "b")
    model = AutoBitModel.from_pretrained(tmp_path / "b", dtype=torch.bfloat16, head_dtype="int8")
    assert model.config.head_dtype == "int8"
    assert model.model.norm.weight.dtype == torch.bfloat16
    with pytest.raises(
        ArgumentError, match=r"quant_config is .*, expected None: the checkpoint says what each layer is"
    ):
        AutoBitModel.from_pretrained(tmp_path / "b", quant_config=BitQuantConfig())
    with pytest.raises(CheckpointError, match="deploy is False, expected True: the checkpoint has packed weights"):
        AutoBitModel.from_pretrained(tmp_path / "b", deploy=False)
    encodings = {tensor.name: tensor.encoding for tensor in inspect_checkpoint(tmp_path / "b").tensors}
    assert encodings[f"{PROJECTION}.weight_packed"] == "2bit"
    assert f"{PROJECTION}.weight" not in encodings


def mixed(model: Any) -> None:
    convert(model, include="*mlp*")
    convert(model, BitQuantConfig.int4(group_size=16), include="*self_attn*")


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("qwen3", None, r"has architectures \['Qwen3ForCausalLM'\], expected one of LlamaForCausalLM"),
        ("falcon", None, r"\['FalconForCausalLM'\]"),
        ("llama", mixed, r"layers of 2 kinds, .*AutoModelForCausalLM"),
        ("llama", convert, r"layers has model.embed_tokens, .*AutoModelForCausalLM"),
    ],
)
def test_what_no_model_of_ours_is_says_what_reads_it(kind: str, change: Any, message: str, tmp_path: Path) -> None:
    model = language_model(kind)
    (change or (lambda model: convert(model, exclude=("lm_head", "*embed*"))))(model)
    attach_quantizer(deploy(model)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        AutoBitModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(f"{PROJECTION}.weight_packed"), "up_proj"),
        (lambda tensors: tensors.pop(f"{PROJECTION}.weight_scale"), "up_proj.weight_scale is missing"),
        (lambda tensors: tensors[f"{PROJECTION}.weight_packed"].fill_(255), "up_proj: packed is 255 .* code of 3"),
        (lambda tensors: tensors[f"{PROJECTION}.weight_scale"].neg_(), "up_proj: weight_scale is -"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), "extra"),
        (lambda tensors: tensors.pop("model.norm.weight"), "model.norm.weight"),
    ],
)
def test_damage_is_told(change: Any, message: str, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "a", random_model("llama", torch.float32), CLASSES["bitlinear"])
    load(directory).save_pretrained(tmp_path / "b")
    rewrite(tmp_path / "b", change)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        AutoBitModel.from_pretrained(tmp_path / "b")
    for layers, expected in ((..., "layers"), ([{"modules": ["a"]}], "layers: "), ([], "layers of 0 kinds")):
        changed = {"quant_method": "bitlab", **({} if layers is ... else {"layers": layers})}
        edit_config(tmp_path / "b", quantization_config=changed)
        with pytest.raises(CheckpointError, match=expected):
            AutoBitModel.from_pretrained(tmp_path / "b")
    edit_config(tmp_path / "b", num_hidden_layers=9999)
    with pytest.raises(CheckpointError):
        AutoBitModel.from_pretrained(tmp_path / "b")


@pytest.mark.parametrize("model", [make("llama"), BitMLPModel(BitMLPConfig(in_channels=4, hidden_dim=4))])
def test_the_plug_in_says_what_reads_our_own(model: Any, tmp_path: Path) -> None:
    model.deploy().save_pretrained(tmp_path)
    message = "of BitLab's own format, expected .*AutoBitModel.from_pretrained reads it, and export_hf"
    for reader in (AutoConfig, AutoModel, AutoModelForCausalLM):
        with pytest.raises(ArgumentError, match=message):
            reader.from_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=BitLabQuantConfig())


def test_tokenizers_beside_our_own_are_read(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=real_tokenizer("byte level"))
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).encode("naïve €") == tokenizer.encode("naïve €")
