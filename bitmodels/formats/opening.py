"""open_checkpoint: the reader of a path, by what lies there."""

from pathlib import Path

from bitcore.exceptions import CheckpointError
from bitmodels.formats.checkpoint import Checkpoint
from bitmodels.formats.gguf_checkpoint import GgufCheckpoint
from bitmodels.formats.gguf_header import MAGIC
from bitmodels.formats.hugging_face_checkpoint import HuggingFaceCheckpoint
from bitmodels.formats.safetensors_files import INDEX_FILE, WEIGHTS_FILE


def open_checkpoint(path: str | Path) -> Checkpoint:
    """A checkpoint's names, shapes and configuration, ready to be read tensor by tensor.

    Args:
        path: a GGUF or safetensors file, or a directory with model.safetensors, its shards under an index, or one GGUF
            file.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged, or contradicts itself.
        DependencyError: a GGUF tensor's type needs the `gguf` package, which is not installed.
    """
    path = Path(path)
    if path.is_dir():
        if (path / INDEX_FILE).exists() or (path / WEIGHTS_FILE).exists():
            return HuggingFaceCheckpoint(path)
        found = sorted(path.glob("*.gguf"))
        if len(found) == 1:
            return GgufCheckpoint(found[0])
        here = ", ".join(file.name for file in found or sorted(path.iterdir())[:10]) or "nothing"
        raise CheckpointError(f"{path} has {here}, expected {WEIGHTS_FILE}, {INDEX_FILE} or one GGUF file")
    try:
        with path.open("rb") as file:
            is_gguf = file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return GgufCheckpoint(path) if is_gguf or path.suffix == ".gguf" else HuggingFaceCheckpoint(path)
