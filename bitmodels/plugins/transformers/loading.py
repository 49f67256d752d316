"""LoadWeight: a tensor of a checkpoint on its way into a Bit layer, where transformers loads one at a time."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps, WeightConverter

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, BitLabError, QuantizationError, ShapeError
from bitcore.packed_weight import PackedWeight
from bitlayers import BitLayer
from bitmodels.formats import BitNetQuantization, EncodedWeight, ternary_of_floats
from bitmodels.formats.bitnet import BITNET, BITNET_UNPACKED
from bitmodels.formats.scales import config_for

MIN_COLUMNS = 32  # of a row that counts as ternary by its values; a shorter one may be so by chance


class LoadWeight(ConversionOps):
    """Packs what a checkpoint has for a Bit layer; hands on what it has for any other module.

    transformers turns an exception in here into a line of a log and a RuntimeError of its own, so problems are kept and
    raised once everything is loaded (BitLabHfQuantizer).
    """

    def __init__(self, hf_quantizer: Any) -> None:
        self.hf_quantizer = hf_quantizer  # by this name transformers knows that tensors are wanted as the file has them
        self.dtype: torch.dtype | None = None  # of what is handed on

    def __deepcopy__(self, memo: dict[int, object]) -> "LoadWeight":
        return LoadWeight(self.hf_quantizer)  # transformers makes one for each tensor

    @classmethod
    def converter(cls, hf_quantizer: Any, *leaves: str) -> WeightConverter:
        """What tells transformers to bring each `X.leaf` here, for X.weight."""
        return WeightConverter([rf"\.{leaf}$" for leaf in leaves], [".weight"], [cls(hf_quantizer)])

    def convert(  # type: ignore[override]
        self,
        input_dict: dict[str, list[Tensor]],
        full_layer_name: str = "",
        model: nn.Module | None = None,
        missing_keys: set[str] | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        assert model is not None
        weight, scale = (_single(input_dict.get(name)) for name in (r"\.weight$", r"\.weight_scale$"))
        name = full_layer_name.removesuffix(".weight")
        layer = model.get_submodule(name)
        kept: Tensor | None = None
        try:
            if isinstance(layer, BitLayer):
                kept = self.place(layer, name, weight, scale)
                self.hf_quantizer.loaded.add(name)
            elif weight is None or scale is not None:
                raise ArgumentError("weight_scale", "that of a packed layer", "none: the layer is not to be converted")
            else:
                kept = weight if self.dtype is None or not weight.is_floating_point() else weight.to(self.dtype)
        except BitLabError as error:
            self.hf_quantizer.problems.append(f"{name}: {error}")
        if kept is not None:
            return {full_layer_name: kept}
        if missing_keys is not None:
            missing_keys.discard(full_layer_name)
        return {}

    def place(self, layer: BitLayer, name: str, weight: Tensor | None, scale: Tensor | None = None) -> Tensor | None:
        """Deploys the layer `name`, or returns the master weight that it keeps. Raises a BitLabError."""
        bitnet: BitNetQuantization | None = self.hf_quantizer.quantization_config.bitnet
        if weight is None:
            raise ArgumentError("weight", "missing", "a tensor beside weight_scale")
        if scale is None:
            _check_floats(weight, layer, bitnet)
            if self.hf_quantizer.keeps_masters(name):
                return weight.to(layer.weight.dtype if self.dtype is None else self.dtype)
            explicit = self.hf_quantizer.quantization_config.quant_config is not None
            packed, config = _quantized(weight, layer.quant_config, bitnet is not None, explicit)
        else:
            if bitnet is None or bitnet.is_online:
                expected = "a quantization_config of the checkpoint that says what it means"
                raise ArgumentError("weight_scale", "that of a packed layer", expected)
            if self.hf_quantizer.keeps_masters(name):
                raise ArgumentError("trainable", True, "False: packed weights cannot be trained")
            own_scale = bitnet.scale_of_stored(scale)
            self.hf_quantizer.scales[name] = own_scale.cpu()
            encoding = BITNET if weight.dtype == torch.uint8 else BITNET_UNPACKED
            encoded = EncodedWeight(name, encoding, *layer.matrix_shape, weight, own_scale)
            if encoding is BITNET_UNPACKED:
                _check_shape(weight, layer)
            packed, config = encoded.pack(layer.quant_config)
        zero_point = None if packed.zero_point is None else packed.zero_point.to(weight.device)
        on_device = PackedWeight(
            packed.packed.to(weight.device), packed.scale.to(weight.device), zero_point, packed.in_features
        )
        layer.deploy_packed(on_device, config)
        mark_as_initialized(layer)
        return None


def mark_as_initialized(layer: BitLayer) -> None:
    """Keeps transformers from initializing a deployed layer's weight, which it takes for a Parameter."""
    flagged: Any = layer
    flagged._is_hf_initialized = True


def _single(tensors: list[Tensor] | None) -> Tensor | None:
    return tensors[0] if tensors else None


def _check_shape(weight: Tensor, layer: BitLayer) -> None:
    if weight.shape != layer.weight.shape:
        raise ShapeError("weight", f"of shape {list(weight.shape)}", f"{list(layer.weight.shape)}")


def _check_floats(weight: Tensor, layer: BitLayer, bitnet: BitNetQuantization | None) -> None:
    if not weight.is_floating_point():
        raise ArgumentError("weight", f"{weight.dtype} without a weight_scale", "one beside it, or floating point")
    if bitnet is not None and not bitnet.is_online:
        raise ArgumentError(
            "weight", weight.dtype, "packed, with a weight_scale beside it, or in modules_to_not_convert"
        )
    _check_shape(weight, layer)


def _quantized(
    weight: Tensor, config: BitQuantConfig, is_master: bool, explicit: bool
) -> tuple[PackedWeight, BitQuantConfig]:
    """`weight` quantized as `config` says; values that are ternary already keep their scales."""
    matrix = weight.reshape(weight.shape[0], -1)
    if not is_master and config.weight_dtype == "ternary" and matrix.shape[1] >= MIN_COLUMNS:
        try:
            ternary_of_floats(matrix[:1])  # most matrices are not, and their first row says so
            ternary = ternary_of_floats(matrix)
        except QuantizationError:
            pass
        else:
            base = config if explicit else BitQuantConfig.weight_only()
            config = config_for(ternary.scale, matrix.shape[1], base)
            return PackedWeight.from_quantized(ternary, config), config
    return PackedWeight.from_float(matrix, config), config
