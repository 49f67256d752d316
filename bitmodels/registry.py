"""register_model: every model class by the name that config.json holds."""

from collections.abc import Callable
from typing import TypeVar

from bitcore.exceptions import ArgumentError, ModelNotFoundError
from bitmodels.base import BitModelBase

ModelClass = TypeVar("ModelClass", bound=type[BitModelBase])

MODEL_REGISTRY: dict[str, type[BitModelBase]] = {}


def register_model(name: str) -> Callable[[ModelClass], ModelClass]:
    """Class decorator: adds a BitModelBase under `name`, which becomes its `model_type`.

    Raises:
        ArgumentError: the name is taken by another class, or the class is not a BitModelBase.
    """

    def decorator(model: ModelClass) -> ModelClass:
        if not (isinstance(model, type) and issubclass(model, BitModelBase)):
            raise ArgumentError("model", model, "a subclass of BitModelBase")
        taken = MODEL_REGISTRY.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (model.__module__, model.__qualname__):
            raise ArgumentError(
                "name", repr(name), f"another name: it is taken by {taken.__module__}.{taken.__qualname__}"
            )
        model.model_type = name
        MODEL_REGISTRY[name] = model
        return model

    return decorator


def model_class(name: str) -> type[BitModelBase]:
    """The model class `name`. Raises ModelNotFoundError."""
    if name not in MODEL_REGISTRY:
        raise ModelNotFoundError(f"no model is named {name!r}; there are {', '.join(sorted(MODEL_REGISTRY))}")
    return MODEL_REGISTRY[name]
