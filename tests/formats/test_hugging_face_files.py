"""Hugging Face checkpoints: written here and loaded by transformers, saved by transformers and read here, damaged."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from ternary_samples import packed, random_ternary
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from bitcore import BitQuantConfig, CheckpointError
from bitcore.exceptions import ArgumentError, DtypeError, ShapeError
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import dequantize, ternary_quantize
from bitmodels.formats import (
    BitNetQuantization,
    EncodedWeight,
    OutgoingTensor,
    bitnet_layer,
    open_checkpoint,
    ternary_of_floats,
    write_safetensors,
)
from bitmodels.formats.bitnet import BITNET

OFFLINE = [{"linear_class": "bitlinear"}, {"linear_class": "autobitlinear"}]
PROJECTION = "model.layers.1.mlp.down_proj.weight"


def save(directory: Path, tensors: Mapping[str, Tensor], quantization: dict[str, Any] | None) -> Path:
    directory.mkdir(exist_ok=True)
    save_file(dict(tensors), directory / "model.safetensors")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    if quantization is not None:
        config["quantization_config"] = {"quant_method": "bitnet", **quantization}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def layer(scale: Tensor | None = None, rows: int = 8, columns: int = 6) -> dict[str, Tensor]:
    data = BITNET.encode(random_ternary(rows, columns))
    return {"q_proj.weight": data, "q_proj.weight_scale": torch.tensor([20.0]) if scale is None else scale}


def write_llama(directory: Path, llama: LlamaForCausalLM, quantization: BitNetQuantization) -> None:
    """Quantizes the projections of `llama`, in place, and writes the checkpoint."""
    config, outgoing = BitQuantConfig(), []
    for name, parameter in llama.state_dict().items():
        if name.endswith("proj.weight"):
            weight = PackedWeight.from_float(parameter, config)
            parameter.copy_(dequantize(weight.values(config), weight.scale))
            outgoing += bitnet_layer(name.removesuffix(".weight"), weight, None, config, quantization)
        else:
            outgoing.append(
                OutgoingTensor(name, tuple(parameter.shape), parameter.dtype, lambda parameter=parameter: parameter)
            )
    write_safetensors(directory / "model.safetensors", outgoing, {"format": "pt"})
    content = {**llama.config.to_dict(), "architectures": ["LlamaForCausalLM"], "dtype": "float32"}
    content["quantization_config"] = quantization.model_dump()
    (directory / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
def test_transformers_loads_what_is_written_and_what_it_saves_is_read(tmp_path: Path, linear_class: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 50, "num_hidden_layers": 2}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    with torch.no_grad():
        write_llama(tmp_path, llama, BitNetQuantization(linear_class=linear_class))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded.get_submodule(PROJECTION.removesuffix(".weight"))).__name__.lower() == linear_class
    saved = save(tmp_path / "saved", loaded.state_dict(), {"linear_class": linear_class})  # autobitlinear: unpacked
    for directory in (tmp_path, saved):
        checkpoint = open_checkpoint(directory)
        assert checkpoint.entries[PROJECTION].shape == (32, 48)
        for name, expected in llama.state_dict().items():
            tensor = checkpoint.read(name)
            if isinstance(tensor, EncodedWeight):
                weight = tensor.decode()
                exact = directory is tmp_path  # transformers casts what is float64
                torch.testing.assert_close(
                    dequantize(weight.values, weight.scale), expected, rtol=0 if exact else 2**-22, atol=0
                )
            else:
                assert not name.endswith("proj.weight")
                assert torch.equal(tensor, expected)
        assert not any(name.endswith("weight_scale") for name in checkpoint.entries)


@pytest.mark.parametrize("quantization", OFFLINE, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_scales_are_oriented(tmp_path: Path, quantization: dict[str, str], dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint(save(tmp_path, layer(torch.tensor([0.5], dtype=dtype)), quantization))
    expected = 2.0 if quantization["linear_class"] == "bitlinear" else 0.5
    packed_weight, config = checkpoint.read("q_proj.weight").pack(BitQuantConfig(storage_format="base3"))
    assert packed_weight.scale.tolist() == [expected]
    assert (config.weight_granularity, config.storage_format) == ("per_tensor", "base3")


def test_a_config_without_linear_class_is_bitlinear(tmp_path: Path) -> None:
    """As Falcon-E and other checkpoints of onebitllms have it."""
    checkpoint = open_checkpoint(save(tmp_path, layer(), {"modules_to_not_convert": ["lm_head"]}))
    assert checkpoint.read("q_proj.weight").decode().scale.item() == pytest.approx(1 / 20)


def test_the_bias_of_an_autobitlinear_layer_is_multiplied(tmp_path: Path) -> None:
    bias = torch.randn(8, dtype=torch.bfloat16)
    tensors = {**layer(torch.tensor([0.5])), "q_proj.bias": bias, "norm.bias": bias.clone()}
    checkpoint = open_checkpoint(save(tmp_path, tensors, {"linear_class": "autobitlinear"}))
    assert torch.equal(checkpoint.read("q_proj.bias"), bias.float() * 0.5)
    assert torch.equal(checkpoint.read("norm.bias"), bias)
    checkpoint = open_checkpoint(save(tmp_path, tensors, {"linear_class": "bitlinear"}))
    assert torch.equal(checkpoint.read("q_proj.bias"), bias)


def test_online_masters_come_as_they_are(tmp_path: Path) -> None:
    masters = {"q_proj.weight": torch.randn(5, 7).bfloat16()}
    quantization = {"linear_class": "autobitlinear", "quantization_mode": "online"}
    checkpoint = open_checkpoint(save(tmp_path, masters, quantization))
    assert torch.equal(checkpoint.read("q_proj.weight"), masters["q_proj.weight"])
    assert checkpoint.entries["q_proj.weight"].encoding == "bfloat16"


def test_trilm_is_read_as_floats_and_found_ternary(tmp_path: Path) -> None:
    ternary, scale = ternary_quantize(torch.randn(16, 32))
    weight = (ternary * scale).half()
    tensor = open_checkpoint(save(tmp_path, {"q_proj.weight": weight}, None)).read("q_proj.weight")
    found = ternary_of_floats(tensor)
    assert torch.equal(found.values, ternary)
    assert torch.equal(found.scale, scale.half().float())


@pytest.mark.parametrize(
    ("tensors", "quantization", "message"),
    [
        (layer(), None, "q_proj.weight is packed, and config.json has no quantization_config"),
        (layer(), {"quant_method": "gptq"}, "quant_method 'gptq', expected 'bitnet'"),
        (layer(), {"linear_class": "linear"}, r"quantization_config: [^:]*linear_class"),
        (layer(), {"quantization_mode": "sideways"}, r"quantization_config: [^:]*quantization_mode"),
        (layer(), {"linear_class": "autobitlinear"}, r'makes a typical weight ±20, .* set "linear_class": "bitlinear"'),
        (layer(), {"linear_class": "autobitlinear", "quantization_mode": "online"}, "online, as config.json has it"),
        (layer(torch.tensor([0.05])), {}, r'a typical weight ±20, .*set "linear_class": "autobitlinear"'),
        (layer(torch.tensor([0.0])), {}, r"q_proj.weight_scale: weight_scale is 0.0 at \[0\], expected positive"),
        (layer(torch.tensor([-2.0])), {}, r"q_proj.weight_scale: weight_scale is -2.0 at \[0\]"),
        (layer(torch.tensor([torch.nan])), {}, r"q_proj.weight_scale: weight_scale is nan"),
        (layer(torch.ones(2)), {}, r"q_proj.weight_scale: weight_scale is of shape \[2\]"),
        ({"q_proj.weight": layer()["q_proj.weight"]}, {}, "q_proj.weight_scale is missing beside q_proj.weight"),
        ({"q_proj.weight_scale": torch.ones(1)}, {}, "q_proj.weight is missing beside q_proj.weight_scale"),
        ({**layer(), "q_proj.weight": torch.zeros(8, dtype=torch.uint8)}, {}, r"of shape \[8\], expected two dim"),
        ({**layer(), "q_proj.weight": torch.zeros(2, 0, dtype=torch.uint8)}, {}, "at least one weight"),
    ],
)
def test_contradictions_are_refused(
    tmp_path: Path, tensors: dict[str, Tensor], quantization: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(save(tmp_path, tensors, quantization))


def test_floats_that_are_not_ternary_beside_a_scale_are_refused(tmp_path: Path) -> None:
    tensors = {**layer(torch.ones(1)), "q_proj.weight": torch.randn(8, 6)}
    weight = open_checkpoint(save(tmp_path, tensors, {"linear_class": "autobitlinear"})).read("q_proj.weight")
    with pytest.raises(
        CheckpointError, match=r"q_proj.weight \(bitnet unpacked\): weight is .* quantization_mode online"
    ):
        weight.decode()


def test_code_3_is_refused(tmp_path: Path) -> None:
    tensors = layer()
    tensors["q_proj.weight"][1, 2] = 255
    weight = open_checkpoint(save(tmp_path, tensors, {})).read("q_proj.weight")
    with pytest.raises(CheckpointError, match=r"q_proj.weight \(bitnet\): weight is code 3 at \[1, 2\]"):
        weight.pack(BitQuantConfig())


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save(tmp_path, {}, {})
    (tmp_path / "model.safetensors").unlink()
    shards = {"first.safetensors": layer(), "second.safetensors": {"norm.weight": torch.randn(6)}}
    for file, tensors in shards.items():
        save_file(tensors, tmp_path / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


def edit_index(directory: Path, **changes: str | None) -> None:
    path = directory / "model.safetensors.index.json"
    weight_map = {**json.loads(path.read_text())["weight_map"], **changes}
    kept = {name: file for name, file in weight_map.items() if file is not None}
    path.write_text(json.dumps({"weight_map": kept}))


def test_shards(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    assert set(checkpoint.entries) == {"q_proj.weight", "norm.weight"}
    assert checkpoint.read("q_proj.weight").decode().values.shape == (8, 6)
    assert torch.equal(checkpoint.read("norm.weight"), load_file(sharded / "second.safetensors")["norm.weight"])
    with pytest.raises(CheckpointError, match="has no tensor no_such"):
        checkpoint.read("no_such")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q_proj.weight": "second.safetensors"}, r"says that q_proj.weight is in second.safetensors; it is in first"),
        ({"other": "first.safetensors"}, r"says that other is in first.safetensors; it is in none"),
        ({"norm.weight": "third.safetensors"}, r"names 'third.safetensors', which is no file beside it"),
        ({"norm.weight": "../first.safetensors"}, r"names '../first.safetensors', which is no file beside it"),
        ({"norm.weight": "."}, r"names '\.', which is no file"),
        ({"q_proj.weight_scale": None}, r"does not list q_proj.weight_scale"),
    ],
)
def test_a_wrong_index_is_refused(sharded: Path, changes: dict[str, str | None], message: str) -> None:
    edit_index(sharded, **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(sharded)


@pytest.mark.parametrize("contents", [b"", b"[]", b"{}", b'{"weight_map": 3}', b'{"weight_map": {"a": 3}}', b"\xff"])
def test_an_index_that_is_none_is_refused(sharded: Path, contents: bytes) -> None:
    (sharded / "model.safetensors.index.json").write_bytes(contents)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        open_checkpoint(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    save_file({"norm.weight": torch.ones(6), "q_proj.weight": layer()["q_proj.weight"]}, sharded / "second.safetensors")
    with pytest.raises(CheckpointError, match=r"q_proj.weight is in first.safetensors and in second.safetensors"):
        open_checkpoint(sharded)


def test_names_and_shapes_are_checked_before_anything_is_read(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    checkpoint.check_shapes({"q_proj.weight": (8, 6), "norm.weight": [6]})
    with pytest.raises(CheckpointError) as caught:
        checkpoint.check_shapes({"q_proj.weight": (8, 7), "lm_head.weight": (3, 6)})
    for line in (
        "lm_head.weight is missing",
        "norm.weight is not expected",
        "q_proj.weight is of shape [8, 6], expected [8, 7]",
    ):
        assert line in str(caught.value)
    with pytest.raises(CheckpointError, match=r"and 82 more"):
        checkpoint.check_shapes({f"layer{number}": (1,) for number in range(100)})


def test_directories_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has nothing, expected model.safetensors, .*or one GGUF file"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"has pytorch_model.bin, expected"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_checkpoint(tmp_path / "nothing")
    save_file(layer(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("cut", [0, 7, 60, -1])
def test_truncated_files_are_refused(tmp_path: Path, cut: int) -> None:
    path = save(tmp_path, layer(), {}) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a whole safetensors file"):
        open_checkpoint(path)


def test_safetensors_reads_what_is_written(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 5).half(),
        "transposed": torch.randn(4, 6).T,
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 3),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "bfloat16 ü": torch.randn(2, 2, 2).bfloat16(),
        "flags": torch.tensor([True, False]),
    }
    outgoing = [
        OutgoingTensor(name, tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: tensor)
        for name, tensor in tensors.items()
    ]
    write_safetensors(tmp_path / "a.safetensors", outgoing, {"format": "pt"})
    read = load_file(tmp_path / "a.safetensors")
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    def one(shape: tuple[int, ...], dtype: torch.dtype, made: Tensor) -> list[OutgoingTensor]:
        return [OutgoingTensor("a", shape, dtype, lambda: made)]

    with pytest.raises(ShapeError, match=r"a is of shape \[3\], expected \[2\]"):
        write_safetensors(path, one((2,), torch.float32, torch.ones(3)), {})
    with pytest.raises(DtypeError, match=r"a is torch.float32, expected torch.float16"):
        write_safetensors(path, one((2,), torch.float16, torch.ones(2)), {})
    with pytest.raises(ArgumentError, match="tensors is with two of name 'a'"):
        write_safetensors(path, one((2,), torch.float32, torch.ones(2)) * 2, {})
    with pytest.raises(ArgumentError, match=r"a is torch.complex64"):
        write_safetensors(path, one((2,), torch.complex64, torch.ones(2).cfloat()), {})
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("model.safetensors", b"old")]


def test_weights_are_written_from_both_storage_formats(tmp_path: Path) -> None:
    ternary, quantization = random_ternary(8, 7), BitNetQuantization(linear_class="autobitlinear")
    outgoing = []
    for storage_format in ("2bit", "base3"):
        weight, config = packed(ternary, torch.tensor([0.3]), storage_format)
        outgoing += bitnet_layer(storage_format, weight, None, config, quantization)
    write_safetensors(tmp_path / "model.safetensors", outgoing, {})
    read = load_file(tmp_path / "model.safetensors")
    assert torch.equal(read["2bit.weight"], read["base3.weight"])
