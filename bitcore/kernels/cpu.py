"""Base of the compiled CPU kernels: one operator call from float x to float y (csrc/bindings/cpu_ops.cpp)."""

import os
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from bitcore import extensions
from bitcore.config import BitQuantConfig
from bitcore.exceptions import KernelNotFoundError
from bitcore.kernels.base import BitKernelBase, KernelRequest, check_linear_arguments
from bitcore.packed_weight import PackedWeight
from bitcore.packing import WEIGHTS_PER_BYTE

MAX_INT4_IN_FEATURES = 2**20  # int32 sums of int8 activations x int4 weights with a zero point are exact up to here
ISA_VARIABLE = "BITLAB_CPU_ISA"  # names the only compiled CPU kernel that may serve


class CompiledCpuKernel(BitKernelBase):
    """A row of the kernel table in csrc/cpu/dispatch.cpp, found by its name."""

    has_cpp_backend = True
    device_types = frozenset({"cpu"})
    dtypes = frozenset({torch.float32, torch.bfloat16, torch.float16})

    def __init__(self, config: BitQuantConfig) -> None:
        super().__init__(config)
        self._operator = torch.ops.bitlab.packed_linear.default
        self._mode = operator_mode(self.name, config)

    @classmethod
    def unavailable_reason(cls) -> str | None:
        return extensions.why_missing() or _why_not_wanted(cls.name) or _why_not_here(cls.name)

    @classmethod
    def unsupported_reason(cls, request: KernelRequest) -> str | None:
        config = request.config
        reasons = [super().unsupported_reason(request)]
        per_byte = WEIGHTS_PER_BYTE[_format_of(config)]
        if config.weight_granularity == "per_group" and config.group_size % per_byte:
            reasons.append(f"group_size is {config.group_size}, serves multiples of {per_byte}, the weights of a byte")
        if config.weight_dtype == "int4" and (request.in_features or 0) > MAX_INT4_IN_FEATURES:
            reasons.append(f"in_features is {request.in_features}, int32 sums hold {MAX_INT4_IN_FEATURES} of int4")
        return "; ".join(reason for reason in reasons if reason) or None

    def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
        packed, scale, zero_point, in_features = weight
        try:
            y: Tensor = self._operator(x, packed, scale, zero_point, bias, in_features, self._mode)
        except (RuntimeError, NotImplementedError):
            check_linear_arguments(x, weight, bias)  # the operator says only that something is wrong
            raise
        return y

    def linear_group(self, x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]) -> list[Tensor]:
        given = [bias for bias in biases if bias is not None]
        if len(given) not in (0, len(weights)):
            return super().linear_group(x, weights, biases)
        packed, scales = [weight.packed for weight in weights], [weight.scale for weight in weights]
        zero_points = [weight.zero_point for weight in weights if weight.zero_point is not None]
        try:
            y: list[Tensor] = torch.ops.bitlab.packed_linear_group.default(
                x, packed, scales, zero_points, given, weights[0].in_features, self._mode
            )
        except (RuntimeError, NotImplementedError):
            for weight, bias in zip(weights, biases, strict=True):
                check_linear_arguments(x, weight, bias)
            raise
        return y

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.config,)  # an operator handle cannot be pickled or copied


def operator_mode(kernel_name: str, config: BitQuantConfig) -> int:
    """The integer that tells the operators what to compute: `Mode` in csrc/bindings/cpu_ops.cpp."""
    kernel = extensions.cpu_kernel_names().index(kernel_name)
    storage_format = ("2bit", "base3", "int4").index(_format_of(config))
    quantization = (
        2 if config.activation_dtype == "float32" else ("per_token", "per_tensor").index(config.activation_granularity)
    )
    group_size = config.group_size if config.weight_granularity == "per_group" else 0
    return kernel | storage_format << 8 | quantization << 10 | group_size << 16


def _format_of(config: BitQuantConfig) -> str:
    return config.storage_format if config.weight_dtype == "ternary" else "int4"


def _why_not_wanted(name: str) -> str | None:
    wanted = os.environ.get(ISA_VARIABLE)
    if not wanted or wanted == name:
        return None
    usable = [built for built in extensions.cpu_kernel_names() if _why_not_here(built) is None]
    if wanted not in usable:
        raise KernelNotFoundError(f"{ISA_VARIABLE} is {wanted!r}, expected one of {', '.join(usable)} on this CPU")
    return f"{ISA_VARIABLE} is {wanted}"


@cache
def _why_not_here(name: str) -> str | None:
    built = extensions.cpu_kernel_names()
    if name not in built:
        reasons = extensions.build_report().get("skipped")
        reason = reasons.get(name) if isinstance(reasons, dict) else None
        return f"not built: {reason or 'this build was made without it'}"
    native = extensions.cpu_module()
    missing = native.missing_features(built.index(name)) if native is not None else []
    return f"this CPU lacks {', '.join(missing)}" if missing else None
