"""A checkpoint on disk: config.json beside model.safetensors. No pickle is ever loaded.

config.json: {"model_type", "deployed", "config": {...}, "quant_config": {...}}. The tensors are the model's state dict:
`weight` of training layers, `weight_packed` and `weight_scale` of deployed ones.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bitcore.config import BitQuantConfig
from bitcore.exceptions import CheckpointError, ConfigError
from bitmodels.replace_file import replace_file

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MAX_CONFIG_BYTES = 1 << 20


class CheckpointConfig(BaseModel):
    """The contents of config.json."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_type: str
    deployed: bool
    config: dict[str, Any]
    quant_config: BitQuantConfig


def write_checkpoint(directory: Path, config: CheckpointConfig, state: dict[str, Tensor]) -> None:
    """Writes both files, each whole or not at all: an existing checkpoint is replaced only by a complete one."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}
    storages: dict[int, str] = {}
    for name, tensor in tensors.items():
        shared_with = storages.setdefault(tensor.data_ptr(), name) if tensor.numel() else name
        if shared_with != name:
            tensors[name] = tensor.clone()  # safetensors refuses tensors that share memory
    metadata = {"format": "pt", "storage_format": config.quant_config.storage_format}
    with replace_file(directory / WEIGHTS_FILE) as temporary:
        temporary.write_bytes(save(tensors, metadata=metadata))
    with replace_file(directory / CONFIG_FILE) as temporary:
        temporary.write_bytes(config.model_dump_json(indent=2).encode() + b"\n")


def read_config(directory: Path) -> CheckpointConfig:
    """Reads config.json. Raises CheckpointError where it is missing or is not what `write_checkpoint` writes."""
    path = directory / CONFIG_FILE
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes, expected at most {MAX_CONFIG_BYTES}")
        return CheckpointConfig.model_validate_json(path.read_bytes())
    except (OSError, ConfigError) as error:
        raise CheckpointError(f"{path} is not a BitLab config: {error}") from error


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """Reads model.safetensors. Raises CheckpointError where it is missing, truncated or damaged."""
    path = directory / WEIGHTS_FILE
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def load_tensors(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Makes `tensors` the parameters and buffers of a `model` built on the meta device.

    Raises:
        CheckpointError: tensors are missing, unexpected, misshapen or damaged; the message lists them.
    """
    try:
        model.load_state_dict(tensors, assign=True)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"{source} does not fit its config.json: {error}") from error
