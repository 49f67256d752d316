"""LayerGroup: which layers of a model are Bit layers, as the plug-ins' quantization_config in a config.json says it."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, TypeAdapter
from torch import nn

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, CheckpointError, ConfigError
from bitlayers import BitLayer
from bitlayers.registry import LAYER_REGISTRY

METHOD = "bitlab"  # quant_method of a quantization_config with such groups
BASE_LAYER = ".base_layer"  # PEFT's name for the layer inside an adapter


class LayerGroup(BaseModel):
    """The layers of one kind: their modules by qualified name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quant_config: BitQuantConfig
    deployed: bool  # packed weights, else float masters
    norm_eps: float | None = None  # of an RMSNorm on the input, inside the layer
    modules: tuple[str, ...]


_GROUPS = TypeAdapter(tuple[LayerGroup, ...])


def read_groups(value: object) -> tuple[LayerGroup, ...]:
    """The groups in a quantization_config. Raises CheckpointError where it holds none, or a module twice."""
    try:
        groups = _GROUPS.validate_python(value)
    except ConfigError as error:
        raise CheckpointError(f"quantization_config: layers: {error}") from error
    names = [name for group in groups for name in group.modules]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise CheckpointError(f"quantization_config: layers has {', '.join(twice)} twice")
    return groups


def groups_of(model: nn.Module) -> tuple[LayerGroup, ...]:
    """The Bit layers of `model`, by what they have in common.

    Raises:
        ArgumentError: there are none, or one that `convert` would not make again, such as a TernaryLinear.
    """
    found: dict[tuple[BitQuantConfig, bool, float | None], list[str]] = {}
    for name, layer in bit_layers(model):
        if type(layer) not in LAYER_REGISTRY.values() or layer.dense_type is None:
            raise ArgumentError("model", f"with a {type(layer).__name__} at {name}", "layers that convert() makes")
        norm = getattr(layer, "norm", None)
        kind = (layer.quant_config, layer.is_deployed, None if norm is None else norm.eps)
        found.setdefault(kind, []).append(name.replace(BASE_LAYER, ""))
    if not found:
        raise ArgumentError("model", f"a {type(model).__name__} without Bit layers", "one that convert() has changed")
    return tuple(
        LayerGroup(quant_config=config, deployed=deployed, norm_eps=norm_eps, modules=tuple(names))
        for (config, deployed, norm_eps), names in found.items()
    )


def bit_layers(model: nn.Module) -> Iterable[tuple[str, BitLayer]]:
    """The Bit layers of `model` with their names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, BitLayer))
