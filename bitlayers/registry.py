"""LAYER_REGISTRY: every Bit layer by name, with the dense layer that it replaces."""

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from bitcore.exceptions import ArgumentError
from bitlayers.base import BitLayer

LayerClass = TypeVar("LayerClass", bound=type[BitLayer])

LAYER_REGISTRY: dict[str, type[BitLayer]] = {}


def register_layer(name: str) -> Callable[[LayerClass], LayerClass]:
    """Class decorator: adds a BitLayer under `name`. If its `dense_type` is set, `convert` puts it in its place.

    Raises:
        ArgumentError: the name is taken by another class.
    """

    def decorator(layer: LayerClass) -> LayerClass:
        taken = LAYER_REGISTRY.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (layer.__module__, layer.__qualname__):
            raise ArgumentError(
                "name", repr(name), f"another name: it is taken by {taken.__module__}.{taken.__qualname__}"
            )
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
