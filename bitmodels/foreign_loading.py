"""Reading a foreign checkpoint into a BitTransformerModel, tensor by tensor.

The model is built without memory, its names and shapes are compared with the file's, and then each tensor is read,
packed or cast, and put in its place. What is in memory is the packed model and one tensor.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from bitcore.checks import check_config
from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, CheckpointError
from bitcore.packed_weight import PackedWeight
from bitlayers import BitLayer
from bitmodels.adapters import ForeignModel, adapt
from bitmodels.export_weights import PART_ROWS
from bitmodels.formats import Checkpoint, EncodedWeight, ternary_of_floats
from bitmodels.formats.scales import config_for
from bitmodels.head_conversion import pack_rows
from bitmodels.meta_device import on_meta_device
from bitmodels.progress import tracked
from bitmodels.transformer import BitTransformerModel
from bitmodels.transformer_config import BitTransformerConfig


def load_foreign(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    head_dtype: Literal["float", "int8", "int4"] | None = None,
    quant_config: BitQuantConfig | None = None,
    deploy: bool = True,
) -> BitTransformerModel:
    """The model in `checkpoint`, in eval mode; see AutoBitModel.from_pretrained.

    Raises:
        CheckpointError: the architecture is unknown, tensors are missing, unexpected, misshapen or damaged, or are not
            what the model needs.
        ArgumentError, ConfigError: `quant_config` is none, or not of ternary weights, or there is no such `head_dtype`.
    """
    if quant_config is not None:
        check_config(quant_config)
    if quant_config is not None and quant_config.weight_dtype != "ternary":
        raise ArgumentError(
            "quant_config.weight_dtype", quant_config.weight_dtype, "ternary, as the checkpoint's weights"
        )
    foreign = adapt(checkpoint)
    config = foreign.config
    check_layer_count(checkpoint, config)
    if head_dtype is not None:
        config = BitTransformerConfig.model_validate({**config.model_dump(), "head_dtype": head_dtype})
    with on_meta_device():
        model = BitTransformerModel(config, foreign.quant_config if quant_config is None else quant_config).eval()
    foreign_names = {name: foreign.foreign_name(name) for name in model.state_dict()}
    ignored = [name for name in checkpoint.entries if any(fnmatchcase(name, glob) for glob in foreign.ignored)]
    expected = {foreign_names[name]: tensor.shape for name, tensor in model.state_dict().items()}
    checkpoint.check_shapes({**expected, **{name: checkpoint.entries[name].shape for name in ignored}})
    target = foreign.dtype if dtype is None else dtype
    for name, foreign_name in tracked(foreign_names.items(), "reading"):
        try:
            _place(model, name, _Incoming(checkpoint, foreign_name), foreign, target, deploy)
        except ArgumentError as error:
            raise CheckpointError(f"{checkpoint.path}: {foreign_name}: {error}") from error
    return model


def check_layer_count(checkpoint: Checkpoint, config: BitTransformerConfig) -> None:
    """Raises CheckpointError for more layers than tensors, before they are built."""
    if config.num_layers > len(checkpoint.entries):
        raise CheckpointError(f"{checkpoint.path}: {config.num_layers} layers of {len(checkpoint.entries)} tensors")


class _Incoming:
    """A tensor of a checkpoint, and its rows part by part."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self.checkpoint, self.name = checkpoint, name
        self.tensor = checkpoint.read(name)

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        assert isinstance(self.tensor, Tensor)
        return self.checkpoint.parts(self.name, self.tensor, PART_ROWS)


def _place(
    model: BitTransformerModel,
    name: str,
    incoming: _Incoming,
    foreign: ForeignModel,
    dtype: torch.dtype,
    deploy: bool,
) -> None:
    """Makes what is read the tensor `name` of `model`."""
    tensor = incoming.tensor
    module_name, _, leaf = name.rpartition(".")
    module = model.get_submodule(module_name)
    layer = module if isinstance(module, BitLayer) and leaf == "weight" else None
    order = foreign.row_order(name)
    if isinstance(tensor, EncodedWeight):
        if layer is None or layer.quant_config.weight_dtype != "ternary":
            raise ArgumentError("the weight", f"packed in {tensor.format.name}", "in floating point")
        if not deploy:
            raise ArgumentError("deploy", False, "True: the checkpoint has packed weights, which cannot be trained")
        packed, config = tensor.pack(layer.quant_config)
    elif layer is not None and deploy:
        packed, config = _packed(incoming, tensor, layer.quant_config, foreign.floats)
    elif not tensor.is_floating_point():
        raise ArgumentError("the tensor", tensor.dtype, "in floating point")
    else:
        values = torch.empty(tensor.shape, dtype=dtype)
        for rows, part in incoming.parts():
            values[rows] = part
        setattr(module, leaf, nn.Parameter(values if order is None else values[order]))
        return
    layer.deploy_packed(packed if order is None else _reordered(packed, order), config)


def _packed(
    incoming: _Incoming, weight: Tensor, config: BitQuantConfig, floats: str
) -> tuple[PackedWeight, BitQuantConfig]:
    """What is read in floating point, quantized or found ternary, and `config` with its granularity."""
    if config.weight_dtype != "ternary":
        return pack_rows(incoming.parts(), (weight.shape[0], weight.shape[1]), config), config
    if floats == "master":
        return PackedWeight.from_float(weight, config), config
    if floats == "none":
        expected = "packed, with a weight_scale beside it, or in modules_to_not_convert"
        raise ArgumentError("the weight", weight.dtype, expected)
    ternary = ternary_of_floats(weight)
    config = config_for(ternary.scale, weight.shape[1], config)
    return PackedWeight.from_quantized(ternary, config), config


def _reordered(packed: PackedWeight, order: Tensor) -> PackedWeight:
    scale = packed.scale if packed.scale.shape[0] == 1 else packed.scale[order]
    return PackedWeight(packed.packed[order], scale, None, packed.in_features)
