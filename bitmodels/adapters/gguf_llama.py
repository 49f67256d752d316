"""GGUF architecture `llama`: Falcon-E, Falcon3-1.58bit, HF1BitLLM, TriLM. Rows of q and k are interleaved."""

from collections.abc import Callable

from torch import Tensor

from bitmodels.adapters.foreign_model import ForeignModel
from bitmodels.adapters.gguf import read_gguf
from bitmodels.adapters.gguf_names import deinterleaved
from bitmodels.formats import GgufCheckpoint
from bitmodels.transformer_config import BitTransformerConfig


def read_gguf_llama(checkpoint: GgufCheckpoint) -> ForeignModel:
    """The model of a `llama` GGUF file. Raises CheckpointError, as read_gguf."""
    return read_gguf(checkpoint, permuted=_row_order, activation="silu")


def _row_order(config: BitTransformerConfig) -> Callable[[str], Tensor | None]:
    heads = {"q_proj": config.num_heads, "k_proj": config.kv_heads}

    def row_order(name: str) -> Tensor | None:
        parts = name.split(".")
        return deinterleaved(heads[parts[-2]], config.head_size) if parts[-2] in heads else None

    return row_order
