"""Base of the compiled CPU kernels: one operator call from float x to float y (csrc/bindings/cpu_ops.cpp)."""

from functools import cache

import torch
from torch import Tensor

from bitcore import extensions
from bitcore.config import BitQuantConfig
from bitcore.kernels.base import BitKernelBase, check_linear_arguments
from bitcore.packed_weight import PackedWeight


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
        return extensions.why_missing() or _why_not_here(cls.name)

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
