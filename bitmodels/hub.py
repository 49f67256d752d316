"""Where a checkpoint lies: a local path, or a repository of the Hugging Face hub, which is downloaded once."""

import re
from importlib import import_module
from pathlib import Path

from bitcore.exceptions import CheckpointError, DependencyError

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")
TOKENIZER_FILES = ("*token*.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.*")


def local_path(path_or_repo: str | Path, revision: str | None = None, gguf_file: str | None = None) -> Path:
    """The local file or directory of `path_or_repo`.

    Args:
        path_or_repo: a path; if nothing is there, and it reads "owner/name", a repository of the hub. huggingface_hub
            finds it in its cache or downloads it, and obeys HF_HUB_OFFLINE.
        revision: of the repository: a branch, tag or commit.
        gguf_file: a GGUF file in the directory or repository.

    Raises:
        CheckpointError: nothing is there, here or on the hub; the message has the hub's reason.
        DependencyError: huggingface_hub is needed and not installed.
    """
    path = Path(path_or_repo)
    if path.exists() and path_or_repo != "":  # which Path takes for the current folder
        path = path if gguf_file is None else path / gguf_file
        if not path.exists():
            raise CheckpointError(f"{path}: no such file")
        return path
    if REPOSITORY.fullmatch(str(path_or_repo)) is None:
        raise CheckpointError(f"{path_or_repo}: no such file or directory, nor a repository's name, owner/name")
    try:
        hub = import_module("huggingface_hub")
    except ImportError as error:
        raise DependencyError(
            f"{path_or_repo} is no file or directory here; to find it on the Hugging Face hub needs the "
            "huggingface_hub package: pip install huggingface_hub"
        ) from error
    try:
        if gguf_file is not None:
            return Path(hub.hf_hub_download(str(path_or_repo), gguf_file, revision=revision))
        patterns = [*MODEL_FILES, *TOKENIZER_FILES]
        return Path(hub.snapshot_download(str(path_or_repo), revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path_or_repo}: no such file or directory here; the hub's answer: {error}") from error
