"""One model through several formats: BitNet 2B4T's style, Falcon-E's and TriLM's come out as they went in."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import rewrite_gguf
from hugging_face_checkpoints import CLASSES, random_model, rewrite, write_checkpoint
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers_of_all_kinds import TURNED, distance, make

from bitcore import BitQuantConfig
from bitcore.exceptions import ShapeError
from bitmodels import AutoBitModel, export_gguf, export_hf
from bitmodels.formats import open_checkpoint
from bitmodels.formats.gguf_types import TERNARY_FORMATS
from bitmodels.transformer import BitTransformerModel

SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}


def assert_same(model: BitTransformerModel, expected: BitTransformerModel) -> None:
    state, other = model.state_dict(), expected.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in other.items())
    tokens = torch.randint(48, (2, 9))
    with torch.no_grad():
        assert torch.equal(model(tokens), expected(tokens))


@pytest.mark.parametrize(
    ("architecture", "linear_class", "options"),
    [
        ("bitnet", "autobitlinear", {"tie_word_embeddings": True}),
        ("bitnet", "online", {"tie_word_embeddings": True}),
        ("llama", "bitlinear", {}),
        ("llama", "online", {}),
    ],
)
def test_hugging_face_to_ours_to_gguf_to_hugging_face(
    architecture: str, linear_class: str, options: dict[str, Any], tmp_path: Path
) -> None:
    original = random_model(architecture, torch.bfloat16, **SIZES, **options)
    write_checkpoint(tmp_path / "hugging_face", original, CLASSES[linear_class])
    model = AutoBitModel.from_pretrained(tmp_path / "hugging_face")
    model.save_pretrained(tmp_path / "ours")
    ours = AutoBitModel.from_pretrained(tmp_path / "ours")
    assert_same(ours, model)
    export_gguf(ours, tmp_path / "model.gguf", "I2_S")  # its scales are exact
    from_gguf = AutoBitModel.from_pretrained(tmp_path / "model.gguf")
    assert_same(from_gguf, model)
    export_hf(from_gguf, tmp_path / "back")
    assert_same(AutoBitModel.from_pretrained(tmp_path / "back"), model)


def scale_rows_and_shards(tensors: dict[str, Tensor]) -> None:
    """Scales of rows and of halves of K, all of them float16 numbers."""
    tensors["model.layers.0.self_attn.q_proj.weight"] *= 2.0 ** -torch.randint(0, 3, (256, 1))
    tensors["model.layers.0.mlp.down_proj.weight"][:, :256] *= 0.5
    for name, tensor in tensors.items():
        tensors[name] = tensor.half()


@pytest.mark.parametrize("type", TERNARY_FORMATS)
@pytest.mark.parametrize("scales", ["one a tensor", "rows and shards"])
def test_trilm_to_gguf_and_back(type: str, scales: str, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "trilm", random_model("llama", torch.float16, **SIZES), None)
    if scales == "rows and shards":
        rewrite(directory, scale_rows_and_shards)
    model = AutoBitModel.from_pretrained(directory, dtype=torch.float32)
    layers = [model.model.layers[0].self_attn.q_proj, model.model.layers[0].mlp.down_proj]
    found = [layer.quant_config.weight_granularity for layer in layers]
    assert found == (["per_tensor"] * 2 if scales == "one a tensor" else ["per_channel", "per_group"])
    if type == "I2_S" and scales == "rows and shards":
        with pytest.raises(ShapeError, match=r"weight_scale is of shape .*, expected \[1\] for I2_S"):
            export_gguf(model, tmp_path / "model.gguf", type)
        assert not (tmp_path / "model.gguf").exists()
        return
    export_gguf(model, tmp_path / "model.gguf", type)
    activations_as_trained = BitQuantConfig.weight_only()
    back = AutoBitModel.from_pretrained(tmp_path / "model.gguf", quant_config=activations_as_trained)
    assert_same(back, model)


def test_the_older_name_of_the_forks_architecture_is_read(tmp_path: Path) -> None:
    model = make("bitnet", vocab_size=48, hidden_size=128, intermediate_size=128).deploy()
    export_gguf(model, tmp_path / "model.gguf", "I2_S")
    metadata = open_checkpoint(tmp_path / "model.gguf").config
    ours = {key: value for key, value in metadata.items() if key.startswith("bitnet-b1.58")}
    older = {key.replace("bitnet-b1.58", "bitnet-25"): value for key, value in ours.items()}
    changes = {**dict.fromkeys(ours, ...), **older, "general.architecture": "bitnet-25"}
    rewrite_gguf(tmp_path / "model.gguf", tmp_path / "older.gguf", changes)
    assert_same(AutoBitModel.from_pretrained(tmp_path / "older.gguf"), model)


def test_biases_beside_sub_norms_are_exported_as_bitlinear(tmp_path: Path) -> None:
    """autobitlinear would multiply a bias by the scale."""
    model = make("bitnet", vocab_size=48, attention_bias=True).deploy()
    export_hf(model, tmp_path)
    assert open_checkpoint(tmp_path).config["quantization_config"]["linear_class"] == "bitlinear"
    assert_same(AutoBitModel.from_pretrained(tmp_path), model)
    tokens = torch.randint(48, (2, 9))
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits
        assert distance(theirs, model(tokens)) < TURNED
