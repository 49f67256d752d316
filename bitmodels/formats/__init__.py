"""Foreign checkpoints: reading and writing ternary weights as Hugging Face `bitnet` and as GGUF (docs/formats.md)."""

from bitmodels.formats.bitnet import BitNetQuantization
from bitmodels.formats.bitnet_writer import bitnet_layer
from bitmodels.formats.checkpoint import Checkpoint, TensorEntry
from bitmodels.formats.encoded_weight import EncodedWeight
from bitmodels.formats.gguf_checkpoint import GgufCheckpoint
from bitmodels.formats.gguf_writer import gguf_tensor, gguf_weight, write_gguf
from bitmodels.formats.hugging_face_checkpoint import HuggingFaceCheckpoint
from bitmodels.formats.inspection import CheckpointReport, inspect_checkpoint
from bitmodels.formats.opening import open_checkpoint
from bitmodels.formats.safetensors_writer import OutgoingTensor, write_safetensors
from bitmodels.formats.ternary_floats import ternary_of_floats

__all__ = [
    "BitNetQuantization",
    "Checkpoint",
    "CheckpointReport",
    "EncodedWeight",
    "GgufCheckpoint",
    "HuggingFaceCheckpoint",
    "OutgoingTensor",
    "TensorEntry",
    "bitnet_layer",
    "gguf_tensor",
    "gguf_weight",
    "inspect_checkpoint",
    "open_checkpoint",
    "ternary_of_floats",
    "write_gguf",
    "write_safetensors",
]
