"""BitLabHfQuantizer: how transformers loads and saves models with Bit layers."""

from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import WeightRenaming
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer

from bitcore.exceptions import ArgumentError, BitLabError, CheckpointError
from bitlayers import BitLayer
from bitmodels.export_weights import packed_weight
from bitmodels.formats.bitnet import check_orientation
from bitmodels.formats.checkpoint import MAX_NAMES
from bitmodels.layer_groups import METHOD, bit_layers, groups_of
from bitmodels.plugins.transformers.config import BitLabQuantConfig
from bitmodels.plugins.transformers.loading import LoadWeight
from bitmodels.plugins.transformers.placing import marker_names, put_recorded, put_requested


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

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        config = self.quantization_config
        if config.layers is None:
            names = put_requested(model, config, self.pre_quantized)
            self._masters = names if config.trainable else set()
        else:
            self._masters = put_recorded(model, config.layers)

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
        if from_file:
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
        markers = {name: torch.empty(0, 0, dtype=torch.uint8) for name in marker_names(model)}
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
