"""convert and deploy: a whole model at once."""

from collections.abc import Callable, Collection
from copy import deepcopy
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, LayerStateError
from bitcore.packed_weight import PackedWeight
from bitlayers.base import BitLayer
from bitlayers.registry import LAYER_REGISTRY, layer_for

ModuleType = TypeVar("ModuleType", bound=nn.Module)
Selection = Collection[str] | Callable[[str, nn.Module], bool]


def convert(
    model: nn.Module,
    config: BitQuantConfig | None = None,
    include: Selection | None = None,
    exclude: Selection | None = ("lm_head",),
    inplace: bool = True,
) -> nn.Module:
    """Puts a Bit layer in place of each nn.Linear, nn.Conv2d and nn.Embedding (exactly these types, not subclasses).

    Args:
        model: any module; with inplace it keeps its Parameters, so optimizers and tied weights stay good.
        config: of the new layers; BitNet b1.58 if None.
        include: what to convert: globs, or a callable (qualified name, module) -> bool. None: everything.
        exclude: what to leave, likewise. A glob matches a module's qualified name, its last part, or those of a module
            around it.
        inplace: False leaves `model` alone and converts a deep copy.

    Returns:
        The converted model (for a model that is one dense layer, the new layer).

    Raises:
        ArgumentError: nothing was converted; the message lists what was seen.
    """
    model = model if inplace else deepcopy(model)
    chosen = [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)
        if layer_for(module) is not None
        and (include is None or _matches(name, module, include))
        and not _matches(name, module, exclude or ())
    ]
    if not chosen:
        seen = sorted({type(module).__name__ for module in model.modules()})
        dense = sorted(layer.dense_type.__name__ for layer in LAYER_REGISTRY.values() if layer.dense_type is not None)
        raise ArgumentError(
            "model", f"made of {', '.join(seen)}, of which nothing is chosen", f"one of {', '.join(dense)} to convert"
        )
    made: dict[nn.Module, BitLayer] = {}
    for name, module in chosen:
        if module not in made:
            layer = layer_for(module)
            assert layer is not None
            made[module] = layer.from_dense(module, config, copy=False)
        if name == "":
            return made[module]
        model.set_submodule(name, made[module])
    return model


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
            raise type(error)(f"{name}.{error.argument}", error.was, error.expected) from error
    for name, layer in waiting.items():
        layer._become_deployed(packed[name])
    model.eval()
    return model


def _matches(name: str, module: nn.Module, selection: Selection) -> bool:
    if callable(selection):
        return selection(name, module)
    parts = name.split(".")
    around = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatchcase(candidate, pattern) for pattern in selection for candidate in (*around, *parts))
