"""GGUF models: written, read by gguf's and transformers' own readers and back, and what is refused."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf_files import rewrite_gguf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers_of_all_kinds import make

from bitcore import BitQuantConfig, CheckpointError
from bitcore.exceptions import ArgumentError, ShapeError
from bitcore.kernels import KernelRegistry
from bitcore.quantizers import dequantize
from bitmodels import AutoBitModel, export_gguf
from bitmodels.adapters.gguf_names import deinterleaved, interleaved
from bitmodels.formats import open_checkpoint, write_gguf
from bitmodels.formats.gguf_writer import OutgoingGgufTensor
from bitmodels.rope import RopeConfig
from bitmodels.transformer import BitTransformerModel

TYPES = ["TQ2_0", "TQ1_0", "Q2_0", "I2_S"]
SIZES = {"hidden_size": 256, "intermediate_size": 256, "vocab_size": 48, "num_layers": 1}
LLAMA: dict[str, Any] = {"kind": "llama", **SIZES}
BITNET: dict[str, Any] = {"kind": "bitnet", "activation": "silu", **SIZES}
BIASES: dict[str, Any] = {"kind": "biases", **SIZES, "head_dim": 64}
BITNET_B158: dict[str, Any] = {"kind": "bitnet", **SIZES}


def made(
    changes: dict[str, Any], quant_config: BitQuantConfig | None = None, *, exact: bool = True
) -> BitTransformerModel:
    """A deployed model; `exact`: its scales are float16 numbers, which a GGUF block holds without rounding."""
    model = make(quant_config=quant_config, **changes).deploy()
    for name, buffer in model.named_buffers():
        if exact and name.endswith("weight_scale"):
            buffer.copy_(buffer.half())
    return model


def tokens() -> Tensor:
    return torch.randint(48, (2, 9))


@pytest.mark.parametrize(
    "model", [LLAMA, BITNET, {**LLAMA, "kind": "biases", "head_dim": 64}], ids=lambda model: model["kind"]
)
@pytest.mark.parametrize("type", TYPES)
@torch.no_grad()
def test_what_is_written_comes_back_without_loss(model: dict[str, Any], type: str, tmp_path: Path) -> None:
    original = made(model)
    export_gguf(original, tmp_path / "model.gguf", type)
    loaded = AutoBitModel.from_pretrained(tmp_path / "model.gguf")
    state, again = original.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    sizes = {"num_kv_heads": original.config.kv_heads, "head_dim": original.config.head_size}
    assert loaded.config == original.config.model_copy(update=sizes)
    ids = tokens()
    expected = original(ids)
    assert torch.equal(loaded(ids), expected)
    with KernelRegistry.use("reference"):
        assert torch.equal(loaded(ids), expected)


@torch.no_grad()
def test_bitnet_with_relu2_is_written_for_the_fork(tmp_path: Path) -> None:
    original = made(BITNET_B158, exact=False).bfloat16()
    export_gguf(original, tmp_path / "model.gguf", "I2_S")
    assert open_checkpoint(tmp_path).config["general.architecture"] == "bitnet-b1.58"
    loaded = AutoBitModel.from_pretrained(tmp_path)
    ids = tokens()
    assert loaded(ids).dtype == torch.bfloat16
    assert torch.equal(loaded(ids), original(ids))
    for type in TYPES[:3]:
        with pytest.raises(ArgumentError, match=f"type is '{type}', expected I2_S, for Microsoft's fork"):
            export_gguf(original, tmp_path / "other.gguf", type)


@pytest.mark.parametrize("type", ["TQ2_0", "TQ1_0"])
@pytest.mark.parametrize("model", [LLAMA, BITNET], ids=lambda model: model["kind"])
def test_gguf_reads_exactly_ternary_times_scale(model: dict[str, Any], type: str, tmp_path: Path) -> None:
    original = made(model, exact=False)
    export_gguf(original, tmp_path / "model.gguf", type)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    architecture = "bitnet" if model is BITNET else "llama"
    assert bytes(reader.fields["general.architecture"].parts[-1]).decode() == architecture
    for name, attention in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output")):
        layer = original.get_submodule(f"model.layers.0.self_attn.{name}_proj")
        tensor = found[f"blk.0.{attention}.weight"]
        assert tensor.tensor_type.name == type
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        scale = layer.qweight_scale
        if architecture == "bitnet":
            own = torch.tensor(found[f"blk.0.{attention}.scale"].data)
            assert torch.equal(own, scale)
            values = values * own
        else:
            assert f"blk.0.{attention}.scale" not in found
            scale = scale.half().float()
        expected = dequantize(layer.qweight, scale)
        if architecture == "llama" and name in ("q", "k"):
            expected = expected[interleaved(4 if name == "q" else 2, 64)]
        assert torch.equal(values, expected)


@pytest.mark.parametrize("type", ["TQ2_0", "TQ1_0"])
@torch.no_grad()
def test_transformers_gives_the_same_logits_for_the_file(type: str, tmp_path: Path) -> None:
    """It dequantizes GGUF of the llama architecture: the independent check of names, metadata and permuted rows."""
    config = BitQuantConfig.weight_only()
    original = made({**LLAMA, "num_layers": 2}, config)
    export_gguf(original, tmp_path / "model.gguf", type)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    ids = tokens()
    expected = original(ids)
    torch.testing.assert_close(theirs(ids).logits, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(rope_theta=1e6),
        RopeConfig(rope_type="linear", factor=4.0),
        RopeConfig(rope_type="yarn", factor=4.0, original_max_position_embeddings=8, beta_fast=16.0),
        RopeConfig(rope_type="llama3", factor=4.0, original_max_position_embeddings=16),
        RopeConfig(rope_type="factors", frequency_factors=tuple(range(1, 33))),
    ],
    ids=lambda rope: rope.rope_type,
)
def test_rope_is_written_and_read(rope: RopeConfig, tmp_path: Path) -> None:
    export_gguf(made({**LLAMA, "rope": rope}), tmp_path / "model.gguf", "Q2_0")
    loaded = AutoBitModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.config.rope.frequencies(64), rope.frequencies(64))
    if rope.rope_type != "llama3":  # a file has its factors alone
        assert loaded.config.rope == rope


def test_rows_are_interleaved_and_back() -> None:
    assert interleaved(2, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    rows = torch.randn(24)
    assert torch.equal(rows[interleaved(3, 8)][deinterleaved(3, 8)], rows)


@pytest.mark.parametrize("kind", ["int4 head", "tied int8 head", "ternary head"])
@torch.no_grad()
def test_heads_of_few_bits_are_written(kind: str, tmp_path: Path) -> None:
    original = made({**LLAMA, "kind": kind})
    export_gguf(original, tmp_path / "model.gguf")
    loaded = AutoBitModel.from_pretrained(tmp_path)
    assert loaded.config.head_dtype == ("ternary" if kind == "ternary head" else "float")
    ids = tokens()
    expected = original(ids)
    torch.testing.assert_close(loaded(ids), expected, rtol=0, atol=0.05 * float(expected.std()))


def test_a_model_in_training_is_left_as_it_is(tmp_path: Path) -> None:
    model = make(**LLAMA)
    export_gguf(model, tmp_path / "a.gguf")
    assert model.training
    assert not model.is_deployed
    export_gguf(model.deploy(), tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def bpe_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}, merges=[("a", "b"), ("ab", "c")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    tokenizer.add_tokens(["cab"])
    tokenizer.chat_template = "{{ messages }}"
    return tokenizer


def test_the_vocabulary_of_a_tokenizer_is_written(tmp_path: Path) -> None:
    model = made({**LLAMA, "eos_token_id": 5})
    export_gguf(model, tmp_path / "model.gguf", tokenizer=bpe_tokenizer(), tokenizer_pre="llama-bpe")
    metadata = {key.removeprefix("tokenizer."): value for key, value in open_checkpoint(tmp_path).config.items()}
    assert metadata["ggml.model"] == "gpt2"
    assert metadata["ggml.pre"] == "llama-bpe"
    assert metadata["ggml.tokens"][:8] == ["a", "b", "c", "ab", "abc", "<end>", "cab", "[PAD7]"]
    assert len(metadata["ggml.tokens"]) == 48
    assert metadata["ggml.token_type"][:8] == [1, 1, 1, 1, 1, 3, 4, 5]
    assert metadata["ggml.merges"] == ["a b", "ab c"]
    assert metadata["ggml.eos_token_id"] == 5
    assert metadata["chat_template"] == "{{ messages }}"
    export_gguf(model, tmp_path / "model.gguf")
    assert open_checkpoint(tmp_path).config["tokenizer.ggml.model"] == "none"


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"bos": 7, "eos": 5, "padding": 8}),
        ({"eos_token_id": 9, "bos_token_id": 10, "pad_token_id": 11}, {"bos": 10, "eos": 9, "eot": 5, "padding": 11}),
        ({"eos_token_id": (9, 5)}, {"bos": 7, "eos": 9, "eot": 5, "padding": 8}),
    ],
)
def test_the_special_tokens_of_a_tokenizer_are_written(
    config: Any, expected: Any, adds_bos: bool, tmp_path: Path
) -> None:
    """Without them llama.cpp takes token 11 for both, never ends, and begins every prompt with it."""
    tokenizer = bpe_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<begin>", "pad_token": "<pad>"})
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<begin> $A", special_tokens=[("<begin>", 7)]
        )
    export_gguf(made({**LLAMA, **config}), tmp_path / "model.gguf", tokenizer=tokenizer, tokenizer_pre="llama-bpe")
    metadata = {key.removeprefix("tokenizer.ggml."): value for key, value in open_checkpoint(tmp_path).config.items()}
    written = ("bos", "eos", "eot", "eom", "padding")
    assert {which: metadata[key] for which in written if (key := f"{which}_token_id") in metadata} == expected
    assert metadata["add_bos_token"] is adds_bos


WORDS = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        ({"kind": "sliding window"}, {}, ArgumentError, r"config.sliding_window is 4, expected None: llama.cpp has no"),
        ({"kind": "inner norms", "full_precision": ()}, {}, ArgumentError, r"config.linear_norm_eps is 1e-06"),
        ({"full_precision": ("model.layers.0.mlp.up_proj",)}, {}, ArgumentError, r"config.full_precision is "),
        ({"activation": "relu2"}, {}, ArgumentError, r"config.activation is relu2, expected silu, or relu2 with sub-n"),
        ({**BITNET, "tie_embeddings": False}, {}, ArgumentError, r"config.tie_embeddings is False, expected True"),
        ({**BITNET, "attention_bias": True}, {}, ArgumentError, "with biases and sub-norms"),
        (
            {"hidden_size": 128},
            {},
            ShapeError,
            r"in_features is 128, .* of 256 for TQ2_0; it fits I2_S",
        ),
        ({"hidden_size": 64}, {"type": "I2_S"}, ShapeError, r"a multiple of 128 for I2_S; it fits Q2_0"),
        ({}, {"type": "Q4_0"}, ArgumentError, "type is 'Q4_0', expected one of TQ1_0"),
        ({}, {"tokenizer": bpe_tokenizer()}, ArgumentError, "tokenizer_pre is None, expected llama.cpp's name"),
        ({}, {"tokenizer": object()}, ArgumentError, "tokenizer is a object, expected a fast tokenizer"),
        ({}, {"tokenizer": WORDS, "tokenizer_pre": "x"}, ArgumentError, "of type WordLevel, expected byte-level BPE"),
        ({"vocab_size": 5}, {"tokenizer": bpe_tokenizer(), "tokenizer_pre": "x"}, ArgumentError, "with token 6, expec"),
        (
            {"rope": RopeConfig(rope_type="yarn", factor=2.0, original_max_position_embeddings=8, truncate=False)},
            {},
            ArgumentError,
            "yarn without attention_factor",
        ),
        (
            {**BITNET, "rope": RopeConfig(rope_type="llama3", factor=2.0, original_max_position_embeddings=8)},
            {},
            ArgumentError,
            "default, linear or yarn for bitnet",
        ),
    ],
)
def test_what_no_file_can_hold_is_refused_and_nothing_is_written(
    changes: dict[str, Any], options: dict[str, Any], error: type, message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        export_gguf(make(**{**LLAMA, **changes}), tmp_path / "model.gguf", **options)
    assert not any(tmp_path.iterdir())
    with pytest.raises(ArgumentError, match="model is a Linear"):
        export_gguf(nn.Linear(3, 3), tmp_path / "model.gguf")


def test_a_file_needs_a_folder_and_a_free_place(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder: '.*nowhere'"):
        export_gguf(made(LLAMA), tmp_path / "nowhere" / "model.gguf")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a folder, where a file is to be written: '.*folder'"):
        export_gguf(made(LLAMA), tmp_path / "folder")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


# What is refused on reading


def edited(directory: Path, metadata: dict[str, Any], drop: tuple[str, ...] = ()) -> Path:
    """A llama file with other metadata (... takes a key away), and without some tensors."""
    export_gguf(made({**LLAMA, "hidden_size": 64, "intermediate_size": 64}), directory / "whole.gguf", "Q2_0")
    return rewrite_gguf(directory / "whole.gguf", directory / "edited.gguf", metadata, drop)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"general.architecture": "gpt2"},
            "general.architecture is 'gpt2', expected one of llama, bitnet",
        ),
        ({"llama.block_count": ...}, r"llama.block_count is missing"),
        ({"llama.block_count": 2}, r"blk.1.attn_norm.weight is missing"),
        ({"llama.block_count": "two"}, r"llama.block_count is 'two', expected one int"),
        ({"llama.attention.head_count": 0}, r"head_count is 0, expected 1 or more"),
        ({"llama.attention.head_count_kv": [2, 2]}, r"head_count_kv is \[2, 2\], expected one int"),
        ({"llama.rope.dimension_count": 8}, r"rope.dimension_count is 8, expected 16"),
        ({"llama.vocab_size": 50}, r"token_embd.weight is of shape \[48, 64\], expected \[50, 64\]"),
        ({"llama.feed_forward_length": 128}, r"blk.0.ffn_gate.weight is of shape \[64, 64\], expected \[128, 64\]"),
        ({"llama.rope.scaling.type": "longrope"}, "rope_type"),
        ({"llama.rope.scaling.type": "yarn"}, "needs original_max_position_embeddings"),
        ({"llama.rope.scaling.attn_factor": 2.0}, r"attn_factor is there, which is not read"),
        ({"llama.context_length": 0}, "max_length"),
    ],
    ids=str,
)
def test_metadata_that_does_not_fit_is_refused(metadata: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = edited(tmp_path, metadata)
    with pytest.raises(CheckpointError, match=message):
        AutoBitModel.from_pretrained(path)


def test_missing_tensors_and_truncated_files_are_refused(tmp_path: Path) -> None:
    assert AutoBitModel.from_pretrained(edited(tmp_path, {})).config.vocab_size == 48
    path = edited(tmp_path, {}, drop=("output_norm.weight", "blk.0.ffn_up.weight"))
    with pytest.raises(CheckpointError, match=r"(?s)ffn_up.weight is missing.*output_norm.weight is missing"):
        AutoBitModel.from_pretrained(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is truncated or damaged"):
        AutoBitModel.from_pretrained(path)


def test_code_3_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    export_gguf(made(LLAMA), path, "TQ2_0")
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.0.ffn_down.weight")
    raw = bytearray(path.read_bytes())
    raw[tensor.data_offset] = 255
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"blk.0.ffn_down.weight \(TQ2_0\): weight is code 3 at \[0, 0\]"):
        AutoBitModel.from_pretrained(path)


def test_weights_that_are_not_ternary_are_refused(tmp_path: Path) -> None:
    tensors = [
        OutgoingGgufTensor(name, entry.shape, 0, lambda entry=entry: torch.randn(entry.shape))
        for name, entry in open_checkpoint(edited(tmp_path, {})).entries.items()
    ]
    metadata = open_checkpoint(tmp_path / "whole.gguf").config
    write_gguf(tmp_path / "floats.gguf", tensors, metadata)
    with pytest.raises(CheckpointError, match=r"blk.0.attn_q.weight: weight is not ternary: row 0 has 64 magnitudes"):
        AutoBitModel.from_pretrained(tmp_path / "floats.gguf")
