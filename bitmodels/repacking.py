"""repack: the ternary layers of a model in another storage format, or with other activations."""

import torch
from torch import Tensor

from bitcore.checks import check_config
from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError
from bitcore.packed_weight import PackedWeight
from bitcore.packing import pack_ternary
from bitlayers import BitLayer
from bitmodels.base import BitModelBase
from bitmodels.export_weights import PART_ROWS, packed_weight

TAKEN = ("storage_format", "activation_dtype", "activation_granularity")


def repack(model: BitModelBase, quant_config: BitQuantConfig) -> None:
    """Gives the ternary layers of `model` the storage format and the activations of `quant_config`.

    Weights and scales stay the numbers that they are, and how they were quantized stays what the model says.

    Raises:
        ArgumentError: `quant_config` is none, or it or the model is not of ternary weights. The model stays as it was.
    """
    check_config(quant_config)
    for argument, config in (("quant_config", quant_config), ("model.quant_config", model.quant_config)):
        if config.weight_dtype != "ternary":
            raise ArgumentError(f"{argument}.weight_dtype", config.weight_dtype, "ternary")
    taken = {name: getattr(quant_config, name) for name in TAKEN}
    for layer in model.modules():
        if isinstance(layer, BitLayer) and layer.quant_config.weight_dtype == "ternary":
            _repack_layer(layer, BitQuantConfig.model_validate({**layer.quant_config.model_dump(), **taken}))
    model.quant_config = BitQuantConfig.model_validate({**model.quant_config.model_dump(), **taken})


def _repack_layer(layer: BitLayer, config: BitQuantConfig) -> None:
    if layer.is_deployed and config.storage_format != layer.quant_config.storage_format:
        layer.register_buffer("weight_packed", _in_format(packed_weight(layer), layer.quant_config, config))
    layer.quant_config = config
    layer.train(layer.training)  # decides on a kernel again


def _in_format(weight: PackedWeight, old: BitQuantConfig, new: BitQuantConfig) -> Tensor:
    """The same values packed as `new` says, some rows at a time."""
    parts = (weight._replace(packed=rows) for rows in torch.split(weight.packed, PART_ROWS))
    return torch.cat([pack_ternary(part.values(old), new.storage_format) for part in parts])
