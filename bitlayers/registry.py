"""LAYER_REGISTRY: every Bit layer by name, with the dense layer that it replaces."""

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from bitcore.checks import check_registration
from bitlayers.base import BitLayer

LayerClass = TypeVar("LayerClass", bound=type[BitLayer])

LAYER_REGISTRY: dict[str, type[BitLayer]] = {}


def register_layer(name: str) -> Callable[[LayerClass], LayerClass]:
    """Class decorator: adds a BitLayer under `name`. If its `dense_type` is set, `convert` puts it in its place.

    Raises:
        ArgumentError: the name is taken by another class, or the class is not a BitLayer.
    """

    def decorator(layer: LayerClass) -> LayerClass:
        check_registration("layer", layer, BitLayer, name, LAYER_REGISTRY.get(name))
        LAYER_REGISTRY[name] = layer
        return layer

    return decorator


def layer_for(dense: nn.Module) -> type[BitLayer] | None:
    """The Bit layer that replaces modules of exactly `dense`'s type, the last one registered, or None."""
    found = None
    for layer in LAYER_REGISTRY.values():
        if layer.dense_type is type(dense):
            found = layer
    return found
