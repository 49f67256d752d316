"""dense_twin: the network that a ternary one is compared with."""

from copy import deepcopy

from torch import nn

from bitlayers import BitConv2d, BitLinear


def dense_twin(model: nn.Module) -> nn.Module:
    """A copy of `model` with nn.Linear and nn.Conv2d of the same initial weights."""
    twin = deepcopy(model)
    for name, layer in list(twin.named_modules()):
        if isinstance(layer, BitLinear | BitConv2d):
            dense = _dense(layer)
            dense.weight, dense.bias = layer.weight, layer.bias
            twin.set_submodule(name, dense)
    return twin


def _dense(layer: BitLinear | BitConv2d) -> nn.Linear | nn.Conv2d:
    has_bias = layer.bias is not None
    if isinstance(layer, BitLinear):
        return nn.Linear(layer.in_features, layer.out_features, has_bias)
    return nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        has_bias,
        layer.padding_mode,
    )
