"""Base of the compiled CPU kernels: one operator call from float x to float y (csrc/bindings/cpu_ops.cpp)."""

import os
from functools import cache

import torch
from torch import Tensor

from bitcore import extensions
from bitcore.config import BitQuantConfig
from bitcore.exceptions import KernelNotFoundError
from bitcore.kernels.base import BitKernelBase, check_linear_arguments
from bitcore.packed_weight import PackedWeight

ISA_VARIABLE = "BITLAB_CPU_ISA"  # names the only compiled CPU kernel that may serve


class CompiledCpuKernel(BitKernelBase):
    """A row of the kernel table in csrc/cpu/dispatch.cpp, found by its name."""

    has_cpp_backend = True
    device_types = frozenset({"cpu"})
    weight_dtypes = frozenset({"ternary"})
    weight_granularities = frozenset({"per_tensor", "per_channel"})
    storage_formats = frozenset({"2bit"})
    activation_dtypes = frozenset({"int8"})
    dtypes = frozenset({torch.float32, torch.bfloat16, torch.float16})

    def __init__(self, config: BitQuantConfig) -> None:
        super().__init__(config)
        self._operator = torch.ops.bitlab.ternary_linear.default
        self._mode = 2 * extensions.cpu_kernel_names().index(self.name) + (
            config.activation_granularity == "per_tensor"
        )

    @classmethod
    def unavailable_reason(cls) -> str | None:
        return extensions.why_missing() or _why_not_wanted(cls.name) or _why_not_here(cls.name)

    def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
        packed, scale, _, in_features = weight
        try:
            y: Tensor = self._operator(x, packed, scale, bias, in_features, self._mode)
        except (RuntimeError, NotImplementedError):
            check_linear_arguments(x, weight, bias)  # the operator says only that something is wrong
            raise
        return y

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.config,)  # an operator handle cannot be pickled or copied


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
