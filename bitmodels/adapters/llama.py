"""LlamaForCausalLM with ternary weights: Falcon-E, Falcon3-1.58bit, HF1BitLLM, TriLM."""

from bitmodels.adapters.foreign_model import ForeignModel
from bitmodels.adapters.hugging_face import HuggingFaceConfig, read_hugging_face
from bitmodels.formats import HuggingFaceCheckpoint


def read_llama(checkpoint: HuggingFaceCheckpoint) -> ForeignModel:
    """The model of a LlamaForCausalLM checkpoint. Raises CheckpointError, as read_hugging_face."""
    return read_hugging_face(checkpoint, HuggingFaceConfig)
