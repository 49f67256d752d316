"""Adapters: which model a foreign checkpoint holds, one file an architecture."""

from bitcore.exceptions import CheckpointError
from bitmodels.adapters.bitnet import read_bitnet
from bitmodels.adapters.foreign_model import ForeignModel
from bitmodels.adapters.gguf_bitnet import read_gguf_bitnet, read_gguf_bitnet_b158
from bitmodels.adapters.gguf_llama import read_gguf_llama
from bitmodels.adapters.llama import read_llama
from bitmodels.formats import Checkpoint, GgufCheckpoint, HuggingFaceCheckpoint

__all__ = ["ForeignModel", "adapt"]

HUGGING_FACE = {"LlamaForCausalLM": read_llama, "BitNetForCausalLM": read_bitnet}
GGUF = {
    "llama": read_gguf_llama,
    "bitnet": read_gguf_bitnet,
    "bitnet-b1.58": read_gguf_bitnet_b158,
    "bitnet-25": read_gguf_bitnet_b158,
}


def adapt(checkpoint: Checkpoint) -> ForeignModel:
    """The model that `checkpoint` holds.

    Raises:
        CheckpointError: its architecture is unknown, or the adapter's own.
    """
    if isinstance(checkpoint, GgufCheckpoint):
        architecture = checkpoint.config.get("general.architecture")
        if isinstance(architecture, str) and architecture in GGUF:
            return GGUF[architecture](checkpoint)
        raise CheckpointError(
            f"{checkpoint.path}: general.architecture is {architecture!r}, expected one of {', '.join(GGUF)}"
        )
    assert isinstance(checkpoint, HuggingFaceCheckpoint)
    if "quant_config" in checkpoint.config:
        raise CheckpointError(f"{checkpoint.path} is a file of BitLab's own, expected its folder")
    names = checkpoint.config.get("architectures")
    given = names if isinstance(names, list) else []
    known = [name for name in given if isinstance(name, str) and name in HUGGING_FACE]
    if len(known) != 1:
        raise CheckpointError(
            f"{checkpoint.path}: config.json has architectures {names!r}, expected one of {', '.join(HUGGING_FACE)}, "
            "or a config.json of BitLab's own"
        )
    return HUGGING_FACE[known[0]](checkpoint)
