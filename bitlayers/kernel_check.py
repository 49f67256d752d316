"""check_kernels: proof that every kernel here computes a layer as the reference kernel does."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bitcore.config import BitQuantConfig
from bitcore.exceptions import LayerStateError
from bitcore.kernels import BitKernelBase, KernelRegistry, KernelRequest
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import dequantize
from bitlayers.base import BitLayer

BATCHES = (1, 2, 7, 33)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REFERENCE = "reference"


@dataclass(frozen=True)
class KernelCheck:
    """One kernel on one layer with inputs of one dtype."""

    kernel: str
    dtype: torch.dtype
    compared: int = 0  # outputs
    difference: str | None = None  # None: there is none
    unusable: str | None = None  # why the kernel cannot serve the layer here

    @property
    def passed(self) -> bool:
        """Whether outputs were compared, and none differs."""
        return self.compared > 0 and self.difference is None


def check_kernels(
    layer: BitLayer,
    kernels: Collection[str] | None = None,
    dtypes: Collection[torch.dtype] = DTYPES,
    batches: Collection[int] = BATCHES,
    generator: torch.Generator | None = None,
) -> list[KernelCheck]:
    """Runs `layer`'s packed weight on every other kernel and compares with the reference kernel.

    The inputs are random batches, and tokens at the extremes: zeros, all at their largest, one far above the others,
    values that lie between two integers, denormal ones, NaN and Inf. With int8 activations outputs must be equal bit
    for bit. With floating-point activations (docs/numerics.md) the sum may be in another order: each output must be
    within the error of activations that are rounded to 22 bits of the token's largest; NaN and Inf are left out.

    Args:
        layer: in eval mode or deployed.
        kernels: by name; None: all.
        dtypes: of the inputs.
        batches: tokens of each random input.
        generator: of the random inputs, on the CPU.

    Raises:
        KernelNotFoundError: no kernel has one of the names.
        LayerStateError: the layer is in training mode.
    """
    if layer.training:
        raise LayerStateError(f"{type(layer).__name__} is in training mode: call eval() or deploy() first")
    for name in kernels or ():
        KernelRegistry.check_name(name)
    weight = layer._packed_weight()
    checks = []
    for dtype in dtypes:
        request = KernelRequest(
            layer.quant_config, weight.packed.device.type, dtype, weight.in_features, weight.packed.shape[0]
        )
        decisions = [
            decision
            for decision in KernelRegistry.decide(request)
            if decision.kernel.name != REFERENCE and (kernels is None or decision.kernel.name in kernels)
        ]
        checks += [KernelCheck(d.kernel.name, dtype, unusable=d.reason) for d in decisions if d.reason is not None]
        usable = [d.kernel(layer.quant_config) for d in decisions if d.reason is None]
        checks += _compare(layer, weight, usable, dtype, batches, generator)
    return checks


@torch.no_grad()
def _compare(
    layer: BitLayer,
    weight: PackedWeight,
    kernels: list[BitKernelBase],
    dtype: torch.dtype,
    batches: Collection[int],
    generator: torch.Generator | None,
) -> Iterator[KernelCheck]:
    if not kernels:
        return
    config, device = layer.quant_config, weight.packed.device
    named = _inputs(weight.in_features, batches, config, generator)
    inputs = {what: x.to(device, dtype) for what, x in named}
    is_exact = config.activation_dtype == "int8"
    dense = None if is_exact else dequantize(weight.values(config), weight.scale, weight.zero_point, config).abs()
    differences: dict[str, str] = {}
    compared = 0
    for (what, x), expected in zip(inputs.items(), _expected(list(inputs.values()), weight, layer), strict=True):
        tolerance = None if dense is None else _tolerance(x, dense, expected)
        compared += expected.numel()
        for kernel in kernels:
            if kernel.name not in differences:
                difference = _difference(kernel.linear(x, weight, layer.bias), expected, tolerance)
                if difference is not None:
                    differences[kernel.name] = f"{what}: {difference}"
    for kernel in kernels:
        yield KernelCheck(kernel.name, dtype, compared, differences.get(kernel.name))


def _expected(inputs: list[Tensor], weight: PackedWeight, layer: BitLayer) -> list[Tensor]:
    """What the reference kernel gives. It unpacks the weight at every call, so it gets all tokens at once if it may."""
    reference = KernelRegistry.get_kernel_by_name(REFERENCE, layer.quant_config)
    if layer.quant_config.activation_granularity == "per_tensor":
        return [reference.linear(x, weight, layer.bias) for x in inputs]
    outputs = reference.linear(torch.cat(inputs), weight, layer.bias)
    return list(torch.split(outputs, [len(x) for x in inputs]))


def _inputs(
    in_features: int, batches: Collection[int], config: BitQuantConfig, generator: torch.Generator | None
) -> Iterator[tuple[str, Tensor]]:
    """Inputs [tokens, in_features] in float32, each with its name."""
    for batch in batches:
        magnitude = torch.empty(batch, 1).uniform_(-3, 3, generator=generator).exp()
        yield f"batch {batch}", torch.randn(batch, in_features, generator=generator) * magnitude
    signs = torch.randint(0, 2, (in_features,), generator=generator) * 2.0 - 1
    outlier = torch.randn(in_features, generator=generator)
    outlier[-1] = 3e4
    halves = torch.randint(-127, 127, (in_features,), generator=generator) + 0.5
    halves[0] = 127.0  # the scale is 1, and all others lie between two integers
    extremes = torch.stack([torch.zeros(in_features), torch.ones(in_features), -torch.ones(in_features), 6e4 * signs])
    for what, token in (("one large value", outlier), ("ties", halves), ("denormals", 1e-40 * signs)):
        yield what, token.unsqueeze(0)
    yield "extremes", extremes
    if config.activation_dtype == "int8":
        for what, value in (("NaN", math.nan), ("Inf", math.inf)):
            tokens = torch.randn(3, in_features, generator=generator)
            tokens[1, in_features // 2] = value
            yield what, tokens


def _tolerance(x: Tensor, dense: Tensor, expected: Tensor) -> Tensor:
    """The largest error of each output, where activations are floating-point numbers. `dense` is without signs."""
    magnitude = x.float().abs()
    rounded = magnitude * 2.0**-18 + magnitude.amax(1, keepdim=True) * 2.0**-23
    return rounded @ dense.T + 2 * torch.finfo(x.dtype).eps * expected.float().abs() + torch.finfo(x.dtype).tiny


def _difference(y: Tensor, expected: Tensor, tolerance: Tensor | None) -> str | None:
    if y.shape != expected.shape or y.dtype != expected.dtype:
        return f"{y.dtype} {list(y.shape)}, expected {expected.dtype} {list(expected.shape)}"
    if torch.equal(y, expected):
        return None
    same = (y == expected) | (y.isnan() & expected.isnan())
    error = (y.double() - expected.double()).abs()
    if tolerance is not None:
        same |= error <= tolerance.double()
    if bool(same.all()):
        return None
    token, output = (int(index) for index in same.logical_not().nonzero()[0])
    return (
        f"{int(same.logical_not().sum())} of {y.numel()} outputs differ, the first at [{token}, {output}]: "
        f"{y[token, output].item():.9g}, expected {expected[token, output].item():.9g}"
    )
