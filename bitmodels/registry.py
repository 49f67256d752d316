"""register_model: every model class by the name that config.json holds."""

from collections.abc import Callable
from typing import TypeVar

from bitcore.checks import check_registration
from bitcore.exceptions import ModelNotFoundError
from bitmodels.base import BitModelBase

ModelClass = TypeVar("ModelClass", bound=type[BitModelBase])

MODEL_REGISTRY: dict[str, type[BitModelBase]] = {}


def register_model(name: str) -> Callable[[ModelClass], ModelClass]:
    """Class decorator: adds a BitModelBase under `name`, which becomes its `model_type`.

    Raises:
        ArgumentError: the name is taken by another class, or the class is not a BitModelBase.
    """

    def decorator(model: ModelClass) -> ModelClass:
        check_registration("model", model, BitModelBase, name, MODEL_REGISTRY.get(name))
        model.model_type = name
        MODEL_REGISTRY[name] = model
        return model

    return decorator


def model_class(name: str) -> type[BitModelBase]:
    """The model class `name`. Raises ModelNotFoundError."""
    if name not in MODEL_REGISTRY:
        raise ModelNotFoundError(f"no model is named {name!r}; there are {', '.join(sorted(MODEL_REGISTRY))}")
    return MODEL_REGISTRY[name]
