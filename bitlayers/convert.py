"""convert and deploy: a whole model at once."""

import warnings
from copy import deepcopy
from functools import partial
from typing import TypeVar

from torch import nn

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, LayerStateError, UnconvertedWarning
from bitcore.packed_weight import PackedWeight
from bitlayers.base import BitLayer
from bitlayers.registry import LAYER_REGISTRY, layer_for
from bitlayers.selection import Selection, is_chosen
from bitlayers.unconverted import unconverted_weights

ModuleType = TypeVar("ModuleType", bound=nn.Module)


def convert(
    model: nn.Module,
    config: BitQuantConfig | None = None,
    include: Selection | None = None,
    exclude: Selection | None = ("lm_head",),
    inplace: bool = True,
) -> nn.Module:
    """Puts a Bit layer in place of each nn.Linear, nn.Conv2d and nn.Embedding (exactly these types, not subclasses).

    Tied weights stay tied: a layer that shares its weight with one that is left, such as the embedding of a language
    model with its head, is left, too.

    Args:
        model: any module; with inplace it keeps its Parameters, so optimizers and tied weights stay good.
        config: of the new layers; BitNet b1.58 if None.
        include: what to convert: a glob, a callable (qualified name, module) -> bool, or several of them. None:
            everything.
        exclude: what to leave, likewise. A glob matches a module's qualified name, one of its parts, or those of a
            module around it.
        inplace: False leaves `model` alone and converts a deep copy.

    Returns:
        The converted model (for a model that is one dense layer, the new layer).

    Warns:
        UnconvertedWarning: the model has weights in modules of its own, such as the fused experts of a mixture, which
            no Bit layer replaces: they are named, and stay as they are. Excluding their module says that this is meant.

    Raises:
        ArgumentError: nothing was converted; the message lists what was seen. Or a layer has an option that its Bit
            layer has not, or `include` asks for a layer whose weight is tied to one that is left; it is named, and
            nothing has changed.
    """
    model = model if inplace else deepcopy(model)
    convertible = [(name, module) for name, module in model.named_modules(remove_duplicate=False) if layer_for(module)]
    chosen = [(name, module) for name, module in convertible if is_chosen(name, module, include, exclude)]
    tied = _tied_to_what_is_left(model, chosen)
    if include is not None and tied:
        names = ", ".join(f"{name} (tied to {other})" for name, other in tied.items())
        raise ArgumentError("include", f"also {names}, which is left", "tied layers both, or neither")
    chosen = [(name, module) for name, module in chosen if name not in tied]
    unconverted = unconverted_weights(model, partial(is_chosen, include=include, exclude=exclude))
    if not chosen:
        seen = _what_was_seen(model, convertible, unconverted)
        raise ArgumentError("model", seen, f"one of {_dense_types()} to convert")
    made: dict[nn.Module, BitLayer] = {}
    for name, module in chosen:
        if module not in made:
            made[module] = _bit_layer(name, module, config)
    for name, module in chosen:
        if name == "":
            return made[module]
        model.set_submodule(name, made[module])
    if unconverted:
        message = f"no Bit layer replaces these weights, which stay in floating point: {', '.join(unconverted)}"
        warnings.warn(message, UnconvertedWarning, stacklevel=2)
    return model


def _bit_layer(name: str, module: nn.Module, config: BitQuantConfig | None) -> BitLayer:
    layer = layer_for(module)
    assert layer is not None
    try:
        return layer.from_dense(module, config, copy=False)
    except ArgumentError as error:
        raise type(error)(f"{name}: {error.argument}".lstrip(": "), error.was, error.expected) from error


def _tied_to_what_is_left(model: nn.Module, chosen: list[tuple[str, nn.Module]]) -> dict[str, str]:
    """The chosen layers whose weight is a Parameter of a module that is not chosen, too: its name by theirs."""
    names = {name for name, _ in chosen}
    left = {
        parameter: name
        for name, module in model.named_modules(remove_duplicate=False)
        if name not in names
        for parameter in module.parameters(recurse=False)
    }
    return {name: left[module.weight] for name, module in chosen if module.weight in left}


def _what_was_seen(model: nn.Module, convertible: list[tuple[str, nn.Module]], unconverted: list[str]) -> str:
    kinds = sorted({type(module).__name__ for module in model.modules()})
    seen = f"made of {', '.join(kinds)}, of which nothing is chosen"
    if convertible:
        names = ", ".join(name or "the model" for name, _ in convertible)
        seen += f" (left out by include and exclude, or tied to what they leave: {names})"
    return seen + (f" (no Bit layer replaces {', '.join(unconverted)})" if unconverted else "")


def _dense_types() -> str:
    return ", ".join(sorted(layer.dense_type.__name__ for layer in LAYER_REGISTRY.values() if layer.dense_type))


def deploy(model: ModuleType) -> ModuleType:
    """Deploys every Bit layer below `model`, all or none, and puts the model in eval mode. Returns it.

    Raises:
        LayerStateError: there is no layer left to deploy.
        QuantizationError: a weight is NaN or infinite; its layer is named, and nothing has changed.
    """
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, BitLayer) and module.quantize
    }
    waiting = {name: layer for name, layer in layers.items() if not layer.is_deployed}
    if not waiting:
        raise LayerStateError(
            "every Bit layer is deployed already" if layers else "the model has no Bit layers; convert() makes them"
        )
    packed: dict[str, PackedWeight] = {}
    for name, layer in waiting.items():
        try:
            packed[name] = PackedWeight.from_float(layer._master_matrix(), layer.quant_config)
        except ArgumentError as error:
            raise type(error)(f"{name}.{error.argument}".lstrip("."), error.was, error.expected) from error
    for name, layer in waiting.items():
        layer._become_deployed(packed[name])
    model.eval()
    return model
