"""Hugging Face checkpoints: the logits of transformers' own classes, both ways, and what is refused."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face_checkpoints import CLASSES, SIZES, edit_config, random_model, rewrite, write_checkpoint
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers_of_all_kinds import KINDS, TURNED, distance, make

from bitcore import BitQuantConfig, CheckpointError
from bitcore.exceptions import ArgumentError, DtypeError, QuantizationError, ShapeError
from bitcore.kernels import KernelRegistry
from bitlayers import BitLayer, BitLinear
from bitmodels import AutoBitModel, export_hf
from bitmodels.formats import BitNetQuantization, HuggingFaceCheckpoint
from bitmodels.mlp import BitMLPConfig, BitMLPModel
from bitmodels.rope import RopeConfig
from bitmodels.transformer import BitTransformerModel

PROJECTION = "model.layers.1.mlp.up_proj.weight"


def ids() -> torch.Tensor:
    return torch.randint(SIZES["vocab_size"], (2, 9))


@torch.no_grad()
def logits_of(directory: Path, tokens: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    logits: torch.Tensor = model(tokens).logits
    return logits


@pytest.mark.parametrize("architecture", ["llama", "bitnet"])
@pytest.mark.parametrize("linear_class", CLASSES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@torch.no_grad()
def test_logits_equal_transformers(
    architecture: str, linear_class: str, tied: bool, kv_heads: int, tmp_path: Path
) -> None:
    sizes = {"num_key_value_heads": kv_heads, "tie_word_embeddings": tied}
    original = random_model(architecture, torch.float32, **sizes)
    directory = write_checkpoint(tmp_path, original, CLASSES[linear_class])
    model = AutoBitModel.from_pretrained(directory)
    assert isinstance(model, BitTransformerModel)
    assert (model.config.sub_norm, model.config.tie_embeddings) == (architecture == "bitnet", tied)
    assert model.config.eos_token_id == (2, 3)
    assert not model.training
    assert all(not tensor.is_meta for tensor in model.state_dict().values())
    assert sum(layer.is_deployed for layer in model.modules() if isinstance(layer, BitLayer)) == 14
    tokens = ids()
    got = model(tokens)
    assert distance(got, logits_of(directory, tokens)) < TURNED
    with KernelRegistry.use("reference"):
        assert torch.equal(model(tokens), got)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"eos_token_id": [5, 9]}, (5, 9)),
        ({"eos_token_id": 5}, 5),
        ({"eos_token_id": None, "do_sample": True}, (2, 3)),
        ({"eos_token_id": "</s>"}, r"(?s)generation_config.json: .*eos_token_id"),
        ([], "generation_config.json holds a list"),
    ],
)
def test_generation_config_says_what_ends_a_text(generation: Any, expected: Any, tmp_path: Path) -> None:
    """As transformers has it: BitNet b1.58 2B4T names <|eot_id|>, which ends a chat, there alone."""
    directory = write_checkpoint(tmp_path, random_model("llama", torch.float32), CLASSES["bitlinear"])
    (directory / "generation_config.json").write_text(json.dumps(generation))
    if isinstance(expected, str):
        with pytest.raises(CheckpointError, match=expected):
            AutoBitModel.from_pretrained(directory)
    else:
        assert AutoBitModel.from_pretrained(directory).config.eos_token_id == expected


@pytest.mark.parametrize("architecture", ["llama", "bitnet"])
@pytest.mark.parametrize("linear_class", CLASSES)
@torch.no_grad()
def test_bfloat16_is_as_exact_as_transformers(architecture: str, linear_class: str, tmp_path: Path) -> None:
    """transformers rounds the sum of each product to bfloat16; a float32 model of the same weights is the truth."""
    directory = write_checkpoint(tmp_path, random_model(architecture, torch.bfloat16), CLASSES[linear_class])
    tokens = torch.randint(SIZES["vocab_size"], (4, 20))
    truth = AutoBitModel.from_pretrained(directory, dtype=torch.float32)(tokens)
    model = AutoBitModel.from_pretrained(directory)
    got, expected = model(tokens), logits_of(directory, tokens)
    assert got.dtype == expected.dtype == torch.bfloat16
    assert distance(got, truth) < 2 * distance(expected, truth)
    assert distance(got, expected) < 0.3


@torch.no_grad()
def test_trilm_is_ternary_floats_with_floating_point_activations(tmp_path: Path) -> None:
    original = random_model("llama", torch.float16)
    directory = write_checkpoint(tmp_path, original, None)
    model = AutoBitModel.from_pretrained(directory, dtype=torch.float32)
    assert model.model.layers[0].mlp.up_proj.quant_config == BitQuantConfig.weight_only()
    tokens = ids()
    expected = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)(tokens).logits
    torch.testing.assert_close(model(tokens), expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
    assert AutoBitModel.from_pretrained(directory)(tokens).dtype == torch.float16


@torch.no_grad()
def test_scales_of_shards_and_rows_are_kept_and_saved(tmp_path: Path) -> None:
    """TriLM has a scale for each device that trained it; a model may have several granularities."""
    directory = write_checkpoint(tmp_path / "trilm", random_model("llama", torch.float16, hidden_size=64), None)
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"] *= torch.arange(1, 65).reshape(-1, 1) / 64
    tensors["model.layers.0.self_attn.k_proj.weight"][:, :32] *= 0.5
    tensors = {name: tensor.half() for name, tensor in tensors.items()}
    save_file(tensors, directory / "model.safetensors")
    model = AutoBitModel.from_pretrained(directory)
    attention = model.model.layers[0].self_attn
    granularities = [layer.quant_config.weight_granularity for layer in (attention.q_proj, attention.k_proj)]
    assert granularities == ["per_channel", "per_group"]
    model.save_pretrained(tmp_path / "ours")
    loaded = AutoBitModel.from_pretrained(tmp_path / "ours")
    tokens = ids()
    assert torch.equal(loaded(tokens), model(tokens))
    export_hf(model, tmp_path / "back")
    again = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


@torch.no_grad()
def test_storage_format_activations_and_head_can_be_chosen(tmp_path: Path) -> None:
    directory = write_checkpoint(
        tmp_path, random_model("bitnet", torch.bfloat16, tie_word_embeddings=True), CLASSES["bitlinear"]
    )
    tokens = ids()
    plain = AutoBitModel.from_pretrained(directory)
    other = AutoBitModel.from_pretrained(
        directory, head_dtype="int8", quant_config=BitQuantConfig(storage_format="base3"), dtype=torch.bfloat16
    )
    assert other.model.layers[0].mlp.up_proj.weight_packed.shape == (48, 7)
    assert other.model.embed_tokens.weight_packed.dtype == torch.uint8
    assert distance(other(tokens), plain(tokens)) < 0.4
    assert other(tokens).dtype == torch.bfloat16


def test_master_weights_are_kept_for_training(tmp_path: Path) -> None:
    original = random_model("bitnet", torch.float32)
    directory = write_checkpoint(tmp_path / "online", original, CLASSES["online"])
    model = AutoBitModel.from_pretrained(directory, deploy=False)
    assert torch.equal(model.get_parameter(PROJECTION), original.get_parameter(PROJECTION))
    tokens = ids()
    assert distance(model(tokens), logits_of(directory, tokens)) < TURNED
    model.train()(tokens).sum().backward()
    directory = write_checkpoint(tmp_path / "packed", original, CLASSES["bitlinear"])
    with pytest.raises(CheckpointError, match="deploy is False, expected True: the checkpoint has packed weights"):
        AutoBitModel.from_pretrained(directory, deploy=False)


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_checkpoint(tmp_path, random_model("llama", torch.bfloat16), CLASSES["bitlinear"])
    alive: list[weakref.ref] = []
    most = 0
    original = HuggingFaceCheckpoint.read

    def read(self: HuggingFaceCheckpoint, name: str) -> object:
        nonlocal most
        most = max(most, sum(reference() is not None for reference in alive))
        tensor = original(self, name)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(HuggingFaceCheckpoint, "read", read)
    gc.collect()
    AutoBitModel.from_pretrained(directory)
    assert len(alive) == 21
    assert most <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activations", ["int8", "float32"])
@pytest.mark.parametrize("deployed", [False, True])
@torch.no_grad()
def test_exported_models_are_the_same_in_transformers_and_back(
    kind: str, activations: str, deployed: bool, tmp_path: Path
) -> None:
    model = make(kind, BitQuantConfig(activation_dtype=activations), vocab_size=48)
    model = model.deploy() if deployed else model.train()
    if kind == "sliding window":
        with pytest.raises(ArgumentError, match=r"config.sliding_window is 4, expected None"):
            export_hf(model, tmp_path / "new")
        assert not (tmp_path / "new").exists()
        return
    if kind == "inner norms" and activations == "float32":
        with pytest.raises(ArgumentError, match=r"config.linear_norm_eps is 1e-06, expected None"):
            export_hf(model, tmp_path)
        return
    export_hf(model, tmp_path)
    assert model.training != deployed
    tokens = ids()
    expected = model.eval()(tokens)
    assert distance(logits_of(tmp_path, tokens), expected) < TURNED
    back = AutoBitModel.from_pretrained(tmp_path)
    if model.config.head_dtype == "float":
        assert torch.equal(back(tokens), expected)
    if model.config.head_dtype == "float" and kind != "inner norms":
        state, again = model.deploy().state_dict() if not deployed else model.state_dict(), back.state_dict()
        assert state.keys() == again.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(rope_theta=500000.0),
        RopeConfig(rope_type="linear", factor=2.0),
        RopeConfig(rope_type="llama3", factor=4.0, original_max_position_embeddings=16),
        RopeConfig(rope_type="yarn", factor=4.0, original_max_position_embeddings=8, beta_fast=4.0),
    ],
    ids=lambda rope: rope.rope_type,
)
@torch.no_grad()
def test_rope_is_exported(rope: RopeConfig, tmp_path: Path) -> None:
    model = make("llama", BitQuantConfig.weight_only(), vocab_size=48, rope=rope).eval()
    export_hf(model, tmp_path)
    tokens = torch.randint(48, (1, 32))
    torch.testing.assert_close(logits_of(tmp_path, tokens), model(tokens), rtol=1e-3, atol=1e-2)
    assert AutoBitModel.from_pretrained(tmp_path).config.rope == rope


@torch.no_grad()
def test_bfloat16_models_are_exported(tmp_path: Path) -> None:
    model = make("bitnet", vocab_size=48).bfloat16().deploy()
    export_hf(model, tmp_path)
    tokens = ids()
    logits = logits_of(tmp_path, tokens)
    assert logits.dtype == torch.bfloat16
    assert distance(logits, model(tokens)) < 0.3
    assert torch.equal(AutoBitModel.from_pretrained(tmp_path)(tokens), model(tokens))


def test_a_tokenizer_is_saved_beside_the_model(tmp_path: Path) -> None:
    class Tokenizer:
        def save_pretrained(self, directory: Path) -> None:
            (directory / "tokenizer.json").write_text("{}")

    export_hf(make("llama"), tmp_path, Tokenizer())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nn.Linear(3, 3), ArgumentError, "model is a Linear, expected a BitTransformerModel"),
        (BitMLPModel(BitMLPConfig()), ArgumentError, "model is a BitMLPModel"),
        ({"intermediate_size": 50}, ShapeError, "out_features is 50, expected a multiple of 4 for bitnet"),
        ({"quant_config": BitQuantConfig.int8_per_tensor()}, ArgumentError, "is per_tensor, expected per_token"),
        (
            {"quant_config": BitQuantConfig(weight_granularity="per_channel")},
            ShapeError,
            "bitnet has one scale a weight",
        ),
        ({"sub_norm": True, "mlp_bias": True}, ArgumentError, r"config.mlp_bias is True"),
        ({"sub_norm": True, "head_dim": 6}, ArgumentError, r"config.head_dim is 6, expected 32 / 4"),
        ({"rope": RopeConfig(rope_type="factors", frequency_factors=(1.0,) * 4)}, ArgumentError, "a scaling that tran"),
    ],
)
def test_what_transformers_cannot_hold_is_refused_and_nothing_is_written(
    model: Any, error: type, message: str, tmp_path: Path
) -> None:
    if isinstance(model, dict):
        model = make("llama", **{"vocab_size": 48, **model})
    with pytest.raises(error, match=message):
        export_hf(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_is_no_tokenizer_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="tokenizer is 'gpt2', expected a tokenizer of transformers"):
        export_hf(make("llama"), tmp_path / "new", "gpt2")  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_a_directory_of_shards_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    for write in (lambda: export_hf(make("llama"), tmp_path), lambda: make("llama").save_pretrained(tmp_path)):
        with pytest.raises(ArgumentError, match=r"expected one without model.safetensors.index.json"):
            write()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_export_leaves_what_was_there(tmp_path: Path) -> None:
    export_hf(make("llama"), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken = make("llama")
    with torch.no_grad():
        broken.get_parameter(PROJECTION)[3, 4] = torch.nan
    with pytest.raises(QuantizationError, match=r"weight is nan at \[3, 4\]"):
        export_hf(broken, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_tensors_that_say_nothing_new_are_left_out(tmp_path: Path) -> None:
    original = random_model("llama", torch.float32, tie_word_embeddings=True)
    directory = write_checkpoint(tmp_path, original, CLASSES["bitlinear"])
    tokens = ids()
    expected = AutoBitModel.from_pretrained(directory)(tokens)
    table = original.get_parameter("model.embed_tokens.weight").detach().clone()
    extra = {"lm_head.weight": table, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    rewrite(directory, lambda tensors: tensors.update(extra))
    assert torch.equal(AutoBitModel.from_pretrained(directory)(tokens), expected)


@torch.no_grad()
def test_modules_that_are_not_converted_stay_as_they_are(tmp_path: Path) -> None:
    names = ["lm_head", "model.layers.0.mlp", "o_proj"]
    quantization = BitNetQuantization(modules_to_not_convert=names)
    kept = [f"layers.1.{name}_proj.weight" for name in ("mlp.gate", "mlp.up", "mlp.down")]
    packed = (*kept, *(f"{name}_proj.weight" for name in "qkv"))
    directory = write_checkpoint(tmp_path, random_model("llama", torch.float32), quantization, packed)
    model = AutoBitModel.from_pretrained(directory)
    assert not isinstance(model.model.layers[0].mlp.up_proj, BitLinear)
    assert isinstance(model.model.layers[1].mlp.up_proj, BitLinear)
    assert not isinstance(model.model.layers[1].self_attn.o_proj, BitLinear)
    tokens = ids()
    assert distance(model(tokens), logits_of(directory, tokens)) < TURNED


@torch.no_grad()
@pytest.mark.parametrize("linear_class", CLASSES)
def test_a_list_without_lm_head_converts_it(linear_class: str, tmp_path: Path) -> None:
    quantization = CLASSES[linear_class].model_copy(update={"modules_to_not_convert": []})
    directory = write_checkpoint(
        tmp_path, random_model("llama", torch.float32), quantization, ("proj.weight", "lm_head.weight")
    )
    model = AutoBitModel.from_pretrained(directory)
    assert model.config.head_dtype == "ternary"
    tokens = ids()
    assert distance(model(tokens), logits_of(directory, tokens)) < TURNED


def test_a_config_of_older_versions_is_read(tmp_path: Path) -> None:
    bitlinear = write_checkpoint(tmp_path, random_model("llama", torch.float32), CLASSES["bitlinear"])
    expected = AutoBitModel.from_pretrained(bitlinear).config
    content = json.loads((bitlinear / "config.json").read_text())
    older = {
        "rope_parameters": ...,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "dtype": ...,
        "torch_dtype": "float32",
    }
    edit_config(bitlinear, **older)
    assert "rope_parameters" in content
    assert AutoBitModel.from_pretrained(bitlinear).config == expected
    edit_config(bitlinear, rope_scaling={"type": "linear", "factor": 4.0})
    assert AutoBitModel.from_pretrained(bitlinear).config.rope == RopeConfig(rope_type="linear", factor=4.0)
    edit_config(bitlinear, rope_scaling=None, torch_dtype=...)
    assert AutoBitModel.from_pretrained(bitlinear).model.norm.weight.dtype == torch.float32


@pytest.mark.parametrize("wrong", ["bfloat16", torch.int8], ids=str)
def test_what_is_no_dtype_of_floats_is_refused(wrong: Any, tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path / "ours")
    export_hf(make("llama"), tmp_path / "foreign")
    for directory in ("ours", "foreign"):
        with pytest.raises(DtypeError, match=rf"dtype is {wrong!r}, expected a floating-point torch.dtype"):
            AutoBitModel.from_pretrained(tmp_path / directory, dtype=wrong)


def test_an_option_for_foreign_models_is_refused_for_our_own(tmp_path: Path) -> None:
    make("llama").deploy().save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match=r"deploy is False, expected True: a checkpoint of BitLab's own says"):
        AutoBitModel.from_pretrained(tmp_path, deploy=False)
    loaded = AutoBitModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.model.norm.weight.dtype == torch.bfloat16
