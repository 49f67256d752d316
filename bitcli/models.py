"""Loading the model and the tokenizer that a command names."""

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

from bitcli.output import track
from bitcore.exceptions import ArgumentError, CheckpointError, DependencyError
from bitmodels import AutoBitModel, BitModelBase
from bitmodels.checkpoint import is_own
from bitmodels.formats import GgufCheckpoint
from bitmodels.hub import TOKENIZER_FILES, local_path
from bitmodels.progress import show_progress

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def model_path(model: str, revision: str | None = None, gguf_file: str | None = None) -> Path:
    """The local folder or GGUF file of what a user calls a model; raises as bitmodels.hub.local_path does."""
    path = local_path(model, revision, gguf_file)
    found = list(path.glob("*.gguf")) if path.is_dir() else []
    return found[0] if len(found) == 1 and not list(path.glob("*.safetensors")) else path


def load_model(path: Path, **options: Any) -> BitModelBase:
    """AutoBitModel.from_pretrained of a local path, with progress."""
    with show_progress(track):
        return AutoBitModel.from_pretrained(path, **options)


def is_own_model(path: Path) -> bool:
    """Whether `path` holds a model in BitLab's own format."""
    return path.is_dir() and is_own(path)


def has_tokenizer(path: Path) -> bool:
    """Whether a model's folder or GGUF file has a tokenizer."""
    if path.is_dir():
        return any((path / name).exists() for name in VOCABULARIES)
    return path.suffix == ".gguf" and GgufCheckpoint(path).config.get("tokenizer.ggml.model", "none") != "none"


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a model's folder, of a GGUF file, or of a folder of its own, by `transformers`.

    Raises:
        DependencyError: transformers is not installed.
        CheckpointError: it cannot read the tokenizer.
    """
    try:
        transformers = import_module("transformers")
    except ImportError as error:
        raise DependencyError("tokenizers are read by the transformers package: pip install transformers") from error
    transformers.logging.set_verbosity_error()  # it does not know our model types, and warns of them
    try:
        if path.is_dir():
            return transformers.AutoTokenizer.from_pretrained(path)
        return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # whatever transformers and tokenizers raise on what they do not know
        reason = str(error).strip().partition("\n")[0]
        expected = "--tokenizer PATH names another"
        raise CheckpointError(f"{path}: transformers cannot read its tokenizer ({reason}); {expected}") from error


def copy_tokenizer(path: Path, directory: Path) -> None:
    """Puts the tokenizer at `path` (`tokenizer_path`) into `directory`.

    Raises:
        DependencyError, CheckpointError: as `load_tokenizer`, for a GGUF file.
    """
    if path.is_file():
        load_tokenizer(path).save_pretrained(directory)
        return
    for pattern in TOKENIZER_FILES:
        for file in path.glob(pattern):
            shutil.copyfile(file, directory / file.name)


def tokenizer_path(path: Path, tokenizer: str | None) -> Path | None:
    """Where the tokenizer lies: at `tokenizer`, a path or a repository, else beside the model at `path`, else None.

    Raises:
        ArgumentError: there is none at `tokenizer`.
        CheckpointError: there is no such place.
    """
    if tokenizer is None:
        return path if has_tokenizer(path) else None
    given = model_path(tokenizer)
    if not has_tokenizer(given):
        raise ArgumentError("--tokenizer", tokenizer, f"a folder with {' or '.join(VOCABULARIES)}, or a GGUF file")
    return given
