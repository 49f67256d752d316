"""Repositories of the Hugging Face hub, from its cache: no test reaches the network."""

import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hugging_face_checkpoints import CLASSES, random_model, write_checkpoint
from transformers_of_all_kinds import make

from bitcore import CheckpointError
from bitcore.exceptions import DependencyError
from bitmodels import AutoBitModel, export_gguf

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def repository(cache: Path, name: str) -> Path:
    """An empty snapshot of the repository `name` in the cache."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def test_a_repository_is_found_in_the_cache(cache: Path) -> None:
    snapshot = repository(cache, "somebody/some-model")
    write_checkpoint(snapshot, random_model("llama", torch.float32), CLASSES["bitlinear"])
    expected = AutoBitModel.from_pretrained(snapshot)
    tokens = torch.randint(48, (1, 5))
    for revision in (None, "main", COMMIT):
        model = AutoBitModel.from_pretrained("somebody/some-model", revision=revision)
        assert torch.equal(model(tokens), expected(tokens))


def test_a_gguf_file_of_a_repository_or_directory_is_chosen_by_name(cache: Path) -> None:
    snapshot = repository(cache, "somebody/some-gguf")
    for name, vocab_size in (("a.gguf", 10), ("b.gguf", 20)):
        export_gguf(make("llama", hidden_size=64, intermediate_size=64, vocab_size=vocab_size), snapshot / name, "Q2_0")
    for place in ("somebody/some-gguf", snapshot):
        assert AutoBitModel.from_pretrained(place, gguf_file="b.gguf").config.vocab_size == 20
    with pytest.raises(CheckpointError, match=r"a.gguf, b.gguf, expected model.safetensors, .* or one GGUF file"):
        AutoBitModel.from_pretrained(snapshot)
    with pytest.raises(CheckpointError, match=r"c.gguf: no such file"):
        AutoBitModel.from_pretrained(snapshot, gguf_file="c.gguf")


def test_a_repository_that_is_not_there_is_told_with_the_reason(cache: Path) -> None:
    with pytest.raises(CheckpointError, match="somebody/nothing: no such file or directory here; the hub's answer: "):
        AutoBitModel.from_pretrained("somebody/nothing")
    with pytest.raises(CheckpointError, match="the hub's answer: "):
        AutoBitModel.from_pretrained("somebody/nothing", gguf_file="model.gguf")


@pytest.mark.parametrize("path", ["nothing", "a/b/c", "../somebody/nothing", "/no/such", "somebody/no name", ""])
def test_what_is_neither_a_path_nor_a_repository_is_refused(cache: Path, path: str) -> None:
    with pytest.raises(CheckpointError, match="no such file or directory, nor a repository's name"):
        AutoBitModel.from_pretrained(path)


def test_without_huggingface_hub_the_message_says_how_to_get_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DependencyError, match=r"pip install huggingface_hub$"):
        AutoBitModel.from_pretrained("somebody/some-model")
