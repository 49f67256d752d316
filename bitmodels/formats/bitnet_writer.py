"""The tensors of a packed layer as Hugging Face `bitnet` has them."""

import torch
from torch import Tensor

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError
from bitcore.packed_weight import PackedWeight
from bitmodels.formats.bitnet import BITNET, BitNetQuantization
from bitmodels.formats.fitting import check_fits
from bitmodels.formats.safetensors_writer import OutgoingTensor


def bitnet_layer(
    name: str, weight: PackedWeight, bias: Tensor | None, config: BitQuantConfig, quantization: BitNetQuantization
) -> list[OutgoingTensor]:
    """`name`.weight, `name`.weight_scale and, if there is one, `name`.bias.

    The scale is float32 or float64 (BitNetQuantization.stored_of_scale), so that reading gives it back bit for bit;
    transformers casts it to the dtype of its model.

    Raises:
        ArgumentError: weights that are not ternary; a bias in autobitlinear, which would multiply it by the scale; the
            online mode, which has no packed weights.
        ShapeError: out_features is not a multiple of 4, or there is more than one scale.
        QuantizationError: the scale is not positive and finite.
    """
    if config.weight_dtype != "ternary":
        raise ArgumentError("config.weight_dtype", config.weight_dtype, "ternary")
    if quantization.is_online:
        raise ArgumentError(
            "quantization.quantization_mode", "online", "offline: online checkpoints hold master weights"
        )
    if bias is not None and quantization.multiplies_bias:
        raise ArgumentError(
            "quantization.linear_class",
            "autobitlinear",
            f"bitlinear for the bias of {name}: autobitlinear multiplies it",
        )
    out_features, in_features = weight.packed.shape[0], weight.in_features
    check_fits(BITNET.name, out_features, in_features)
    stored = quantization.stored_of_scale(weight.scale)
    tensors = [
        OutgoingTensor(
            f"{name}.weight",
            (out_features // 4, in_features),
            torch.uint8,
            lambda: BITNET.encode(weight.values(config)),
        ),
        OutgoingTensor(f"{name}.weight_scale", (1,), stored.dtype, lambda: stored),
    ]
    if bias is not None:
        tensors.append(OutgoingTensor(f"{name}.bias", tuple(bias.shape), bias.dtype, lambda: bias))
    return tensors
