"""GGUF architectures of BitNet: `bitnet` (mainline llama.cpp: SiLU) and `bitnet-b1.58` (Microsoft's fork: relu²).

Their rotary embedding turns halves of heads, as Hugging Face's, so no rows are permuted.
"""

from bitmodels.adapters.foreign_model import ForeignModel
from bitmodels.adapters.gguf import read_gguf
from bitmodels.formats import GgufCheckpoint


def read_gguf_bitnet(checkpoint: GgufCheckpoint) -> ForeignModel:
    """The model of a `bitnet` GGUF file. Raises CheckpointError, as read_gguf."""
    return read_gguf(checkpoint, activation="silu", sub_norm=True)


def read_gguf_bitnet_b158(checkpoint: GgufCheckpoint) -> ForeignModel:
    """The model of a `bitnet-b1.58` (or older `bitnet-25`) GGUF file. Raises CheckpointError, as read_gguf."""
    return read_gguf(checkpoint, activation="relu2", sub_norm=True)
