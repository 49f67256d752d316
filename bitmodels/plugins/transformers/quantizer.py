"""BitLabHfQuantizer: how transformers loads and saves models with Bit layers."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import WeightRenaming
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer, get_keys_to_not_convert

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, BitLabError, CheckpointError, UnconvertedWarning
from bitlayers import BitLayer, BitLinear
from bitlayers.registry import layer_for
from bitlayers.unconverted import unconverted_weights
from bitmodels.adapters.hugging_face import is_converted
from bitmodels.export_weights import packed_weight
from bitmodels.formats import BitNetQuantization
from bitmodels.formats.bitnet import check_orientation
from bitmodels.formats.checkpoint import MAX_NAMES
from bitmodels.plugins.layer_groups import LayerGroup, bit_layers, groups_of
from bitmodels.plugins.transformers.config import METHOD, BitLabQuantConfig
from bitmodels.plugins.transformers.loading import LoadWeight, mark_as_initialized


@register_quantizer(METHOD)
class BitLabHfQuantizer(HfQuantizer):
    """Puts Bit layers into a model, in training state, before its weights are read; each is deployed by its weight.

    Layers that `save_pretrained` wrote deployed are deployed at once, and their packed tensors read as they are.
    """

    quantization_config: BitLabQuantConfig

    def __init__(self, quantization_config: BitLabQuantConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.loaded: set[str] = set()  # layers whose weight has come through LoadWeight
        self.problems: list[str] = []
        self.scales: dict[str, Tensor] = {}  # of packed "bitnet" weights
        self._masters: set[str] = set()
        self._conversions: list[Any] = []

    def keeps_masters(self, name: str) -> bool:
        """Whether the layer `name` is to be trained."""
        return name in self._masters

    # Before loading

    def validate_environment(self, device_map: Any = None, **_: Any) -> None:
        """Raises ArgumentError for a device map with layers on disk or, beside others, on the CPU."""
        places = {str(place) for place in device_map.values()} if isinstance(device_map, dict) else set()
        if "disk" in places or ("cpu" in places and len(places) > 1):
            raise ArgumentError("device_map", f"with {', '.join(sorted(places))}", "the CPU alone, or GPUs alone")

    def _process_model_before_weight_loading(self, model: Any, dtype: torch.dtype | None = None, **_: Any) -> None:
        if self.quantization_config.layers is None:
            self._put_requested(model)
        else:
            self._put_recorded(model, self.quantization_config.layers)

    def _put_recorded(self, model: Any, groups: tuple[LayerGroup, ...]) -> None:
        modules = dict(model.named_modules())
        for group in groups:
            for recorded in group.modules:
                name = _name_in(model, modules, recorded)
                layer = _put(model, name, group.quant_config, group.norm_eps)
                if group.deployed:
                    layer.deploy()
                    mark_as_initialized(layer)
                else:
                    self._masters.add(name)
        deployed = {f"{name}.weight" for name, layer in bit_layers(model) if layer.is_deployed}
        model.all_tied_weights_keys = {  # a head and an embedding that are packed have each their own tensors
            name: other for name, other in model.all_tied_weights_keys.items() if not deployed & {name, other}
        }
        ignored = {rf"{re.escape(name)}$" for name in _marker_names(model)}
        model._keys_to_ignore_on_load_unexpected = ignored | set(model._keys_to_ignore_on_load_unexpected or ())

    def _put_requested(self, model: Any) -> None:
        config = self.quantization_config
        bitnet = config.bitnet
        tied = {key.removesuffix(".weight") for pair in model.all_tied_weights_keys.items() for key in pair}
        skip = config.modules_to_not_convert if bitnet is None else bitnet.modules_to_not_convert
        skip = get_keys_to_not_convert(model) if skip is None else skip
        rule = BitNetQuantization(modules_to_not_convert=skip)
        names = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and layer_for(module) is not None and is_converted(name, rule)
        ]
        wanted_tied = sorted(tied.intersection(names))
        if wanted_tied and bitnet is None:
            expected = f"{', '.join(wanted_tied)} in it, too: its weight is tied to the embedding's"
            raise ArgumentError("modules_to_not_convert", skip, expected)
        names = [name for name in names if name not in tied]
        left = []
        if bitnet is None:
            left = unconverted_weights(model, lambda name, _: is_converted(name, rule) and name not in tied)
        if not names:
            kinds = ", ".join(sorted({type(module).__name__ for module in model.modules()}))
            seen = f"made of {kinds}, of which nothing is chosen"
            seen += f" (no Bit layer replaces {', '.join(left)})" if left else ""
            raise ArgumentError("model", seen, "an nn.Linear to convert")
        if left:
            message = f"no Bit layer replaces these weights, which stay in floating point: {', '.join(left)}"
            warnings.warn(message, UnconvertedWarning, stacklevel=5)
        quant_config = BitQuantConfig() if config.quant_config is None else config.quant_config
        norm_eps = bitnet.rms_norm_eps if bitnet is not None and bitnet.use_rms_norm else None
        for name in names:
            layer = _put(model, name, quant_config, norm_eps)
            if not self.pre_quantized and not config.trainable:
                # transformers casts to the dtype of the Parameter; the file's is not known, and none is lost in this.
                layer.weight = nn.Parameter(torch.empty_like(layer.weight, dtype=torch.float32))
        if config.trainable:
            self._masters.update(names)

    # While loading

    def get_weight_conversions(self) -> list[Any]:
        config, bitnet = self.quantization_config, self.quantization_config.bitnet
        if config.layers is None:
            self._conversions = [LoadWeight.converter(self, "weight", "weight_scale")]
        elif self._masters:
            self._conversions = [LoadWeight.converter(self, "weight")]
        if bitnet is not None and bitnet.use_rms_norm:
            self._conversions.append(WeightRenaming(r"\.rms_norm\.weight$", ".norm.weight"))
        return self._conversions

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        for operation in getattr(converter, "operations", ()):
            if isinstance(operation, LoadWeight):
                operation.dtype = dtype
        new_dtype: torch.dtype | None = super().get_new_dtype(converter, param, dtype)
        return new_dtype

    def param_element_size(self, model: Any, param_name: str, param: Tensor) -> float:
        name, _, leaf = param_name.rpartition(".")
        layer = model.get_submodule(name)
        if isinstance(layer, BitLayer) and leaf == "weight" and not self.keeps_masters(name):
            return layer.packed_bytes() / param.numel()
        return float(param.element_size())

    # After loading

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        # These have done their work, and must not be reversed when the model is saved.
        model._weight_conversions = [made for made in model._weight_conversions if made not in self._conversions]
        self._conversions = []
        for name, layer in bit_layers(model):
            if any(problem.startswith(f"{name}: ") for problem in self.problems):
                continue
            try:
                self._finish(name, layer)
            except BitLabError as error:
                self.problems.append(f"{name}: {error}")
        if self.problems:
            path, more = model.config.name_or_path, len(self.problems) - MAX_NAMES
            lines = self.problems[:MAX_NAMES] + ([f"and {more} more"] if more > 0 else [])
            raise CheckpointError("\n  ".join([f"{path} does not fit:", *lines]))
        if self.quantization_config.bitnet is not None:
            check_orientation(self.scales, self.quantization_config.bitnet)
        return model

    def _finish(self, name: str, layer: BitLayer) -> None:
        """Ends what can be done only once weight and bias are both there. Raises a BitLabError for what is amiss."""
        from_file = name not in self.loaded  # by transformers itself, without LoadWeight
        tensors: dict[str, Tensor] = dict(layer.named_parameters())
        if from_file:
            tensors.update(layer.named_buffers())
        missing = [leaf for leaf, tensor in tensors.items() if not getattr(tensor, "_is_hf_initialized", False)]
        if missing and (layer.is_deployed or "weight" in missing):
            raise CheckpointError(f"{', '.join(missing)} missing")
        if from_file and not layer.is_deployed and not self.keeps_masters(name):
            # transformers has converted what checkpoints of this architecture hold, and given it to the layer.
            LoadWeight(self).place(layer, name, layer.weight.detach())
        if not layer.is_deployed:
            return
        packed_weight(layer).check(layer.quant_config)
        bitnet = self.quantization_config.bitnet
        if layer.bias is not None:
            layer.bias.requires_grad_(False)
            if bitnet is not None and bitnet.multiplies_bias:
                with torch.no_grad():
                    layer.bias.copy_(layer.bias.float() * layer.get_buffer("weight_scale"))

    # Saving and training

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The state dict, and `layers` of the config brought up to date.

        An empty tensor more, in place of the first packed layer's float weight, makes transformers refuse the
        checkpoint where this plug-in is not imported: it would otherwise begin from random weights.
        """
        self.quantization_config.layers = groups_of(model)
        model.config.quantization_config = self.quantization_config
        markers = {name: torch.empty(0, 0, dtype=torch.uint8) for name in _marker_names(model)}
        return {**model.state_dict(), **markers}, {}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters on top can always be trained."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether layers have their masters; by what was asked for or recorded."""
        groups = self.quantization_config.layers
        return self.quantization_config.trainable if groups is None else any(not group.deployed for group in groups)

    @property
    def is_compileable(self) -> bool:
        return True


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


def _marker_names(model: nn.Module) -> list[str]:
    """The name of the empty tensor that get_state_dict_and_metadata adds; none where nothing is packed."""
    return [f"{name}.weight" for name, layer in bit_layers(model) if layer.is_deployed][:1]
