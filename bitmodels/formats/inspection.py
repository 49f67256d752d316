"""inspect_checkpoint: what is in a file, layer by layer."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from bitmodels.formats.checkpoint import Checkpoint
from bitmodels.formats.encoded_weight import EncodedWeight
from bitmodels.formats.hugging_face_checkpoint import HuggingFaceCheckpoint
from bitmodels.formats.opening import open_checkpoint
from bitmodels.progress import tracked

TABLES = ("model.embed_tokens", "lm_head")  # of a BitTransformerModel: quantized as its head_dtype says


class ScaleReport(BaseModel):
    """The scales of a ternary weight."""

    model_config = ConfigDict(frozen=True)

    granularity: str  # "per_tensor", "per_channel", "per_group"
    count: int
    smallest: float
    largest: float


class TensorReport(BaseModel):
    """One tensor."""

    model_config = ConfigDict(frozen=True)

    name: str
    shape: tuple[int, ...]
    encoding: str
    nbytes: int
    zeros: float | None = None  # share of zero weights, of ternary weights
    scale: ScaleReport | None = None


class CheckpointReport(BaseModel):
    """A checkpoint."""

    model_config = ConfigDict(frozen=True)

    path: str
    container: str  # "safetensors" or "gguf"
    architecture: str | None
    tensors: tuple[TensorReport, ...]
    bytes_by_encoding: dict[str, int]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(self.bytes_by_encoding.values())


def inspect_checkpoint(path: str | Path) -> CheckpointReport:
    """Reads a checkpoint through, and so checks every ternary weight and scale of it.

    Raises:
        CheckpointError, DependencyError: as open_checkpoint and Checkpoint.read.
    """
    checkpoint = open_checkpoint(path)
    tensors = tuple(_report(checkpoint, name, checkpoint.read(name)) for name in tracked(checkpoint.entries, "reading"))
    bytes_by_encoding: dict[str, int] = {}
    for report in tensors:
        bytes_by_encoding[report.encoding] = bytes_by_encoding.get(report.encoding, 0) + report.nbytes
    return CheckpointReport(
        path=str(checkpoint.path),
        container=checkpoint.container,
        architecture=_architecture(checkpoint),
        tensors=tensors,
        bytes_by_encoding=bytes_by_encoding,
    )


def _report(checkpoint: Checkpoint, name: str, tensor: Tensor | EncodedWeight) -> TensorReport:
    entry = checkpoint.entries[name]
    encoding, zeros, scale = entry.encoding, None, None
    if isinstance(tensor, EncodedWeight):
        values, scale, _ = tensor.decode()
        zeros = float((values == 0).float().mean())
    elif name.endswith(".weight_packed"):
        encoding = _packed_format(checkpoint, name.removesuffix(".weight_packed")) or encoding
        scale = _scale_beside(checkpoint, name)
    return TensorReport(
        name=name,
        shape=entry.shape,
        encoding=encoding,
        nbytes=entry.nbytes,
        zeros=zeros,
        scale=None if scale is None else _scale_report(scale),
    )


def _packed_format(checkpoint: Checkpoint, layer: str) -> str | None:
    """How a weight of BitLab's own or of its plug-in is packed; the shape that is told stays that of the bytes."""
    if isinstance(checkpoint, HuggingFaceCheckpoint) and checkpoint.layers is not None:
        found = (group.quant_config.packed_format for group in checkpoint.layers if layer in group.modules)
        return next(found, None)
    quant_config, config = (checkpoint.config.get(key) for key in ("quant_config", "config"))
    if not isinstance(quant_config, dict):
        return None
    head_dtype = config.get("head_dtype") if isinstance(config, dict) else None
    is_table = layer in TABLES and head_dtype in ("int8", "int4")
    weight_dtype = head_dtype if is_table else quant_config.get("weight_dtype")
    return str(quant_config.get("storage_format") if weight_dtype == "ternary" else weight_dtype)


def _scale_beside(checkpoint: Checkpoint, weight_packed: str) -> Tensor | None:
    name = f"{weight_packed.removesuffix('.weight_packed')}.weight_scale"
    scale = checkpoint.read(name) if name in checkpoint.entries else None
    return scale if isinstance(scale, Tensor) else None


def _scale_report(scale: Tensor) -> ScaleReport:
    granularity = "per_group" if scale.dim() == 2 else "per_channel" if scale.numel() > 1 else "per_tensor"
    smallest, largest = (float(bound) for bound in scale.aminmax())
    return ScaleReport(granularity=granularity, count=scale.numel(), smallest=smallest, largest=largest)


def _architecture(checkpoint: Checkpoint) -> str | None:
    config = checkpoint.config
    if checkpoint.container == "gguf":
        found = config.get("general.architecture")
    else:
        names = config.get("architectures")
        found = names[0] if isinstance(names, list) and names else config.get("model_type")
    return found if isinstance(found, str) else None
