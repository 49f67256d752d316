"""Bit layers in the places of a model of transformers, before its weights are read: as asked for, or as saved."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.quantizers.base import get_keys_to_not_convert

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, CheckpointError, UnconvertedWarning
from bitlayers import BitLayer, BitLinear
from bitlayers.registry import layer_for
from bitlayers.unconverted import unconverted_weights
from bitmodels.adapters.hugging_face import is_converted
from bitmodels.formats import BitNetQuantization
from bitmodels.layer_groups import LayerGroup, bit_layers
from bitmodels.plugins.transformers.config import BitLabQuantConfig
from bitmodels.plugins.transformers.loading import mark_as_initialized


def put_recorded(model: Any, groups: tuple[LayerGroup, ...]) -> set[str]:
    """Puts the layers that were saved into `model`; gives the names of those that have masters.

    Raises:
        CheckpointError: a name is of no module, or of one that no Bit layer replaces.
    """
    modules, masters = dict(model.named_modules()), set()
    for group in groups:
        for recorded in group.modules:
            name = _name_in(model, modules, recorded)
            layer = _put(model, name, group.quant_config, group.norm_eps)
            if group.deployed:
                layer.deploy()
                mark_as_initialized(layer)
            else:
                masters.add(name)
    deployed = {f"{name}.weight" for name, layer in bit_layers(model) if layer.is_deployed}
    model.all_tied_weights_keys = {  # a head and an embedding that are packed have each their own tensors
        name: other for name, other in model.all_tied_weights_keys.items() if not deployed & {name, other}
    }
    ignored = {rf"{re.escape(name)}$" for name in marker_names(model)}
    model._keys_to_ignore_on_load_unexpected = ignored | set(model._keys_to_ignore_on_load_unexpected or ())
    return masters


def put_requested(model: Any, config: BitLabQuantConfig, pre_quantized: bool) -> set[str]:
    """Puts layers into `model` in training state, as `config` asks; gives their names.

    Warns:
        UnconvertedWarning: there are weights that no Bit layer replaces; they are named.

    Raises:
        ArgumentError: there is nothing to convert, or only one of two tied layers is to be.
        CheckpointError: a "bitnet" checkpoint names modules by regular expressions.
    """
    names = _requested(model, config)
    bitnet = config.bitnet
    quant_config = BitQuantConfig() if config.quant_config is None else config.quant_config
    norm_eps = bitnet.rms_norm_eps if bitnet is not None and bitnet.use_rms_norm else None
    for name in names:
        layer = _put(model, name, quant_config, norm_eps)
        if not pre_quantized and not config.trainable:
            # transformers casts to the dtype of the Parameter; the file's is not known, and none is lost in this.
            layer.weight = nn.Parameter(torch.empty_like(layer.weight, dtype=torch.float32))
    return names


def marker_names(model: nn.Module) -> list[str]:
    """The name of the empty tensor that is saved with packed layers (BitLabHfQuantizer); none where there are none."""
    return [f"{name}.weight" for name, layer in bit_layers(model) if layer.is_deployed][:1]


def _requested(model: Any, config: BitLabQuantConfig) -> set[str]:
    tied = {key.removesuffix(".weight") for pair in model.all_tied_weights_keys.items() for key in pair}
    skip = config.modules_to_not_convert if config.bitnet is None else config.bitnet.modules_to_not_convert
    skip = get_keys_to_not_convert(model) if skip is None else skip
    rule = BitNetQuantization(modules_to_not_convert=skip)
    names = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and layer_for(module) is not None and is_converted(name, rule)
    }
    left: list[str] = []
    if config.bitnet is None:
        if tied & names:
            expected = f"{', '.join(sorted(tied & names))} in it, too: its weight is tied to the embedding's"
            raise ArgumentError("modules_to_not_convert", skip, expected)
        left = unconverted_weights(model, lambda name, _: is_converted(name, rule) and name not in tied)
    if not names - tied:
        kinds = ", ".join(sorted({type(module).__name__ for module in model.modules()}))
        seen = f"made of {kinds}, of which nothing is chosen"
        seen += f" (no Bit layer replaces {', '.join(left)})" if left else ""
        raise ArgumentError("model", seen, "an nn.Linear to convert")
    if left:
        message = f"no Bit layer replaces these weights, which stay in floating point: {', '.join(left)}"
        warnings.warn(message, UnconvertedWarning, stacklevel=2)
    return names - tied


def _put(model: nn.Module, name: str, quant_config: BitQuantConfig, norm_eps: float | None) -> BitLayer:
    """Puts a Bit layer with the same Parameters in place of the module `name`."""
    dense = model.get_submodule(name)
    layer_class = layer_for(dense)
    if layer_class is None:
        raise CheckpointError(f"quantization_config: layers has {name}, a {type(dense).__name__}: it has no Bit layer")
    layer = layer_class.from_dense(dense, quant_config, copy=False)
    if norm_eps is not None:
        if not isinstance(layer, BitLinear):
            raise CheckpointError(f"quantization_config: layers has a norm in {name}, a {type(dense).__name__}")
        layer.norm = nn.RMSNorm(layer.in_features, eps=norm_eps, dtype=layer.weight.dtype, device=layer.weight.device)
    model.set_submodule(name, layer)
    return layer


def _name_in(model: Any, modules: Mapping[str, nn.Module], name: str) -> str:
    """`name` as one of the `modules` of `model`, which may be without the head that it was saved with, or have one."""
    prefix = f"{model.base_model_prefix}."
    for candidate in (name, name.removeprefix(prefix), prefix + name):
        if candidate in modules:
            return candidate
    raise CheckpointError(f"quantization_config: layers has {name}, which a {type(model).__name__} has not")
