"""BitNetForCausalLM: BitNet b1.58 2B4T, a Llama with relu² and sub-norms."""

from typing import ClassVar

from bitmodels.adapters.foreign_model import ForeignModel
from bitmodels.adapters.hugging_face import HuggingFaceConfig, read_hugging_face
from bitmodels.formats import HuggingFaceCheckpoint


class BitNetConfig(HuggingFaceConfig):
    """Its defaults, where config.json has no value."""

    default_theta: ClassVar[float] = 500000.0
    sub_norm: ClassVar[bool] = True

    hidden_act: str = "relu2"
    rms_norm_eps: float = 1e-5


def read_bitnet(checkpoint: HuggingFaceCheckpoint) -> ForeignModel:
    """The model of a BitNetForCausalLM checkpoint. Raises CheckpointError, as read_hugging_face."""
    return read_hugging_face(checkpoint, BitNetConfig)
