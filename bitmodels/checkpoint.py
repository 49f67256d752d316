"""A checkpoint on disk: config.json beside model.safetensors. No pickle is ever loaded.

config.json: {"model_type", "deployed", "config": {...}, "quant_config": {...}}. The tensors are the model's state dict:
`weight` of training layers, `weight_packed` and `weight_scale` of deployed ones.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bitcore.config import BitQuantConfig
from bitcore.exceptions import CheckpointError, ConfigError
from bitlayers import BitLayer
from bitmodels.formats.safetensors_files import check_no_shards, read_json
from bitmodels.formats.safetensors_writer import OutgoingTensor, write_safetensors
from bitmodels.formats.scales import config_for
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
    check_no_shards(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = [
        OutgoingTensor(name, tuple(tensor.shape), tensor.dtype, partial(Tensor.detach, tensor))
        for name, tensor in state.items()
    ]
    metadata = {"format": "pt", "storage_format": config.quant_config.storage_format}
    write_safetensors(directory / WEIGHTS_FILE, tensors, metadata)
    with replace_file(directory / CONFIG_FILE) as temporary:
        temporary.write_bytes(config.model_dump_json(indent=2).encode() + b"\n")


def is_own(directory: Path) -> bool:
    """Whether config.json in `directory` is one of BitLab's own. Raises CheckpointError if it is no JSON object."""
    path = directory / CONFIG_FILE
    return path.exists() and "quant_config" in read_json(path)


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
    _match_granularity(model, tensors)
    try:
        model.load_state_dict(tensors, assign=True)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"{source} does not fit its config.json: {error}") from error


def _match_granularity(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Lets each deployed ternary layer expect as many scales as the file has for it.

    Layers of one model may differ where they come from a foreign checkpoint. A number of scales that no granularity
    has is left for `load_state_dict` to refuse.
    """
    for name, layer in model.named_modules():
        scale = tensors.get(f"{name}.weight_scale")
        if not isinstance(layer, BitLayer) or not layer.is_deployed or scale is None:
            continue
        if layer.quant_config.weight_dtype != "ternary" or scale.shape == layer.get_buffer("weight_scale").shape:
            continue
        rows, columns = layer.matrix_shape
        groups = scale.shape[1] if scale.dim() == 2 else 1
        if scale.shape in ((1,), (rows,), (rows, groups)) and groups > 0 and columns % groups == 0:
            layer.quant_config = config_for(scale, columns, layer.quant_config)
            layer.register_buffer("weight_scale", torch.empty(scale.shape, device="meta"))
