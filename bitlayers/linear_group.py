"""linear_group: layers that read the same input, such as q/k/v or gate/up projections, in one call."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bitlayers.linear import BitLinear


def linear_group(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """`[layer(x) for layer in layers]`, bit for bit.

    x is quantized once, and one operator runs all layers, where they are BitLinears in eval mode or deployed that agree
    in what they compute and need no gradient. All else (training, other modules, hooks, a norm of its own) is called
    one by one.

    Args:
        layers: modules that take x alone.
        x: [..., in_features], floating point.

    Returns:
        A tensor [..., out_features] for each layer.

    Raises:
        ShapeError, DtypeError, DeviceError: x does not fit a layer.
    """
    bit_layers = [layer for layer in layers if isinstance(layer, BitLinear) and _is_plain(layer)]
    if len(bit_layers) < max(2, len(layers)) or not _agree(bit_layers, x):
        return [layer(x) for layer in layers]
    kernel = bit_layers[0]._kernel_for(x.dtype)
    return kernel.linear_group(
        x, [layer._packed_weight() for layer in bit_layers], [layer._parameters["bias"] for layer in bit_layers]
    )


def _is_plain(layer: BitLinear) -> bool:
    """Whether calling `layer` is nothing but its kernel."""
    return (
        type(layer).forward is BitLinear.forward
        and not layer.training
        and layer.norm is None
        and not (layer._forward_hooks or layer._forward_pre_hooks)
    )


def _agree(layers: Sequence[BitLinear], x: Tensor) -> bool:
    first = layers[0]
    wants_gradient = torch.is_grad_enabled() and (
        x.requires_grad or any(parameter.requires_grad for layer in layers for parameter in layer.parameters())
    )
    return not wants_gradient and all(
        layer.in_features == first.in_features and layer._kernel_for(x.dtype) is first._kernel_for(x.dtype)
        for layer in layers[1:]
    )
