"""End-of-sequence tokens in GGUF files: all of them are read, and written."""

from pathlib import Path
from typing import Any

import pytest
from gguf_files import rewrite_gguf
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers_of_all_kinds import make

from bitcore.exceptions import ArgumentError, CheckpointError
from bitmodels import AutoBitModel, export_gguf
from bitmodels.formats import open_checkpoint

KEY = "tokenizer.ggml.{}_token_id"
TEXTS = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|other|>", "<|another|>"]
END_OF_TEXT, EOM, EOT, OTHER, ANOTHER = range(3, 8)


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    backend.add_special_tokens(TEXTS)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def write(path: Path, eos_token_id: Any, **options: Any) -> dict[str, int]:
    """Writes a file of a model with this config, and gives the end tokens in it by key."""
    model = make("llama", hidden_size=64, intermediate_size=64, num_layers=1, eos_token_id=eos_token_id)
    export_gguf(model, path, "Q2_0", **options)
    metadata = open_checkpoint(path).config
    return {which: metadata[KEY.format(which)] for which in ("eos", "eot", "eom") if KEY.format(which) in metadata}


@pytest.mark.parametrize(
    ("eos_token_id", "expected", "again"),
    [
        (None, {}, None),
        ((), {}, None),
        (9, {"eos": 9}, 9),
        ((9,), {"eos": 9}, 9),
        ((9, 4), {"eos": 9, "eot": 4}, (9, 4)),
        ((9, 4, 9, 0), {"eos": 9, "eot": 4, "eom": 0}, (9, 4, 0)),
    ],
)
def test_without_a_vocabulary(eos_token_id: Any, expected: Any, again: Any, tmp_path: Path) -> None:
    assert write(tmp_path / "model.gguf", eos_token_id) == expected
    assert AutoBitModel.from_pretrained(tmp_path).config.eos_token_id == again


@pytest.mark.parametrize(
    ("eos_token_id", "expected"),
    [
        ((END_OF_TEXT, EOM, EOT), {"eos": END_OF_TEXT, "eot": EOT, "eom": EOM}),
        ((END_OF_TEXT, EOT, OTHER), {"eos": END_OF_TEXT, "eot": EOT, "eom": OTHER}),
        ((OTHER, ANOTHER, EOT, END_OF_TEXT, EOM), {"eos": OTHER, "eot": ANOTHER, "eom": EOM}),
    ],
)
def test_the_texts_of_tokens_say_which_is_which(eos_token_id: Any, expected: Any, tmp_path: Path) -> None:
    options = {"tokenizer": tokenizer(), "tokenizer_pre": "llama-bpe"}
    assert write(tmp_path / "model.gguf", eos_token_id, **options) == expected
    read = AutoBitModel.from_pretrained(tmp_path).config.eos_token_id
    assert read[: len(expected)] == tuple(expected.values())
    assert set(read) == {*eos_token_id, END_OF_TEXT, EOM, EOT}  # llama.cpp knows these without a key
    assert len(set(read)) == len(read)


@pytest.mark.parametrize("options", [{}, {"tokenizer": tokenizer(), "tokenizer_pre": "llama-bpe"}])
def test_more_than_a_file_can_say_are_refused(options: Any, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=rf"eos_token_id of .* is \[0, 1, 2, {OTHER}\], expected .* 3 .*GGUF"):
        write(tmp_path / "model.gguf", (0, 1, 2, OTHER), **options)
    assert not any(tmp_path.iterdir())


def test_what_llama_cpp_finds_by_its_text_is_read(tmp_path: Path) -> None:
    """Files of Llama 3's vocabulary name one token, and chats end with another."""
    write(tmp_path / "whole.gguf", 5)
    tokens = [f"t{index}" for index in range(50)]
    tokens[11], tokens[13], tokens[17], tokens[19] = "<|end_of_text|>", "<|eot_id|>", "<|eot_id|>x", "<|fim_pad|>"
    vocabulary = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens}
    for keys, expected in (
        ({"eos": 11}, (11, 13)),
        ({"eos": ...}, (11, 13)),
        ({"eos": 13, "eom": 11}, (13, 11)),
        ({"eos": 20, "eot": 20, "fim_rep": 21}, (20, 21, 11, 13)),
    ):
        metadata = {**vocabulary, **{KEY.format(which): token for which, token in keys.items()}}
        path = rewrite_gguf(tmp_path / "whole.gguf", tmp_path / "edited.gguf", metadata)
        assert AutoBitModel.from_pretrained(path).config.eos_token_id == expected


@pytest.mark.parametrize("which", ["eos", "eot", "eom"])
@pytest.mark.parametrize("value", ["</s>", [1, 2], 1.5])
def test_an_end_token_that_is_none_is_refused(which: str, value: Any, tmp_path: Path) -> None:
    write(tmp_path / "whole.gguf", 5)
    path = rewrite_gguf(tmp_path / "whole.gguf", tmp_path / "edited.gguf", {KEY.format(which): value})
    with pytest.raises(CheckpointError, match=f"{KEY.format(which)} is .*, expected a token"):
        AutoBitModel.from_pretrained(path)
