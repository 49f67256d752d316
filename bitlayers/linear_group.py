"""linear_group: layers that read the same input, such as q/k/v or gate/up projections, in one call."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bitcore.ops.bitlinear import check_training_input
from bitcore.ops.fused_training import fused_linears, fused_operators
from bitlayers.linear import BitLinear
from bitlayers.plain import has_forward_of_class


def linear_group(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """`[layer(x) for layer in layers]`, bit for bit.

    x is quantized once, and one operator runs all layers, where they are BitLinears that agree in what they compute: in
    eval mode or deployed without gradients, or in training on a kernel that has fused operators (x is then also saved
    once). All else (other modules, hooks, a norm of its own) is called one by one.

    Args:
        layers: modules that take x alone.
        x: [..., in_features], floating point.

    Returns:
        A tensor [..., out_features] for each layer.

    Raises:
        ShapeError, DtypeError, DeviceError: x does not fit a layer.
    """
    group = [layer for layer in layers if isinstance(layer, BitLinear) and _is_plain(layer)]
    if len(group) < max(2, len(layers)):
        return [layer(x) for layer in layers]
    together = _train(group, x) if group[0].training else _infer(group, x)
    return together if together is not None else [layer(x) for layer in layers]


def _is_plain(layer: BitLinear) -> bool:
    """Whether calling `layer` is nothing but its product."""
    return type(layer).forward is BitLinear.forward and layer.norm is None and has_forward_of_class(layer)


def _infer(layers: Sequence[BitLinear], x: Tensor) -> list[Tensor] | None:
    """Together, where all are in eval mode or deployed, agree and need no gradient."""
    wants_gradient = torch.is_grad_enabled() and (
        x.requires_grad or any(parameter.requires_grad for layer in layers for parameter in layer.parameters())
    )
    first, *others = layers
    if wants_gradient or any(layer.training or layer.in_features != first.in_features for layer in others):
        return None
    kernel = first._kernel_for(x.dtype)
    if any(layer._kernel_for(x.dtype) is not kernel for layer in others):
        return None
    weights = [layer._packed_weight() for layer in layers]
    return kernel.linear_group(x, weights, [layer._parameters["bias"] for layer in layers])


def _train(layers: Sequence[BitLinear], x: Tensor) -> list[Tensor] | None:
    """Together, where all train fully quantized on one kernel with fused operators."""
    first, *others = layers
    if first.quantization_lambda != 1 or any(
        not layer.training or layer.quantization_lambda != 1 or layer.in_features != first.in_features
        for layer in others
    ):
        return None
    kernel = first._training_kernel(x)
    if kernel is None or any(layer._training_kernel(x) is not kernel for layer in others):
        return None
    weights: list[Tensor] = [layer.weight for layer in layers]
    operators = fused_operators(kernel, x, weights)
    if operators is None:
        return None
    for weight in weights:
        check_training_input(x, weight)
    return fused_linears(kernel, operators, x, weights, [layer.bias for layer in layers])
