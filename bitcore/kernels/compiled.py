"""Base of the compiled kernels, CPU and CUDA: one operator call from float x to float y (csrc/bindings)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bitcore.config import BitQuantConfig
from bitcore.kernels.base import BitKernelBase, KernelRequest, check_linear_arguments
from bitcore.packed_weight import PackedWeight

MAX_INT4_IN_FEATURES = 2**20  # int32 sums of int8 activations x int4 weights with a zero point are exact up to here
MAX_INT8_IN_FEATURES = 2**16  # the same of int8 weights
STORAGE_FORMATS = ("2bit", "base3", "int4", "int8")  # as the operators number them


class CompiledKernel(BitKernelBase):
    """A kernel behind the operators bitlab::packed_linear and bitlab::packed_linear_group."""

    has_cpp_backend = True
    weight_dtypes = frozenset({"ternary", "int4", "int8"})
    dtypes = frozenset({torch.float32, torch.bfloat16, torch.float16})

    def __init__(self, config: BitQuantConfig) -> None:
        super().__init__(config)
        self._operator = torch.ops.bitlab.packed_linear.default
        self._mode = operator_mode(config) | self._index()
        self._has_zero_point = config.weight_quantizer == "minmax"  # which operators are not told

    @property
    def mode(self) -> int:
        """What operators are told of the config and the kernel: `Mode` in csrc/bindings."""
        return self._mode

    @classmethod
    def _index(cls) -> int:
        """The kernel's place among those of its operator, 0..255."""
        return 0

    @classmethod
    def unsupported_reason(cls, request: KernelRequest) -> str | None:
        config = request.config
        reasons = [super().unsupported_reason(request)]
        if config.weight_granularity == "per_group" and config.weight_dtype in (cls.weight_dtypes or ()):
            reasons.append(cls._group_reason(config.packed_format, config.group_size))
        most = {"int4": MAX_INT4_IN_FEATURES, "int8": MAX_INT8_IN_FEATURES}.get(config.weight_dtype)
        if most is not None and (request.in_features or 0) > most:
            reasons.append(f"in_features is {request.in_features}, int32 sums hold {most} of {config.weight_dtype}")
        return "; ".join(reason for reason in reasons if reason) or None

    @classmethod
    def _group_reason(cls, storage_format: str, group_size: int) -> str | None:
        """Why weights with a scale a group cannot be served, or None."""
        return None

    def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
        packed, scale, zero_point, in_features = weight
        if (zero_point is not None) is not self._has_zero_point:
            check_linear_arguments(x, weight, bias, self.config)
        try:
            y: Tensor = self._operator(x, packed, scale, zero_point, bias, in_features, self._mode)
        except (RuntimeError, NotImplementedError) as error:
            check_linear_arguments(x, weight, bias, self.config)  # the operator says only that something is wrong
            _raise_if_out_of_memory(error, x)
            raise
        return y

    def linear_group(self, x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]) -> list[Tensor]:
        given = [bias for bias in biases if bias is not None]
        if len(given) not in (0, len(weights)):
            return super().linear_group(x, weights, biases)
        packed, scales = [weight.packed for weight in weights], [weight.scale for weight in weights]
        zero_points = [weight.zero_point for weight in weights if weight.zero_point is not None]
        if len(zero_points) != (len(weights) if self._has_zero_point else 0):
            self._check_group(x, weights, biases)
        try:
            y: list[Tensor] = torch.ops.bitlab.packed_linear_group.default(
                x, packed, scales, zero_points, given, weights[0].in_features, self._mode
            )
        except (RuntimeError, NotImplementedError) as error:
            self._check_group(x, weights, biases)
            _raise_if_out_of_memory(error, x)
            raise
        return y

    def _check_group(self, x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]) -> None:
        for weight, bias in zip(weights, biases, strict=True):
            check_linear_arguments(x, weight, bias, self.config)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.config,)  # an operator handle cannot be pickled or copied


def _raise_if_out_of_memory(error: Exception, x: Tensor) -> None:
    """PyTorch's own exception in place of the operator's."""
    if str(error).startswith("out of memory"):
        raise torch.OutOfMemoryError(
            f"out of memory on {x.device} for the output or the quantized activations of x of shape {list(x.shape)}"
        ) from error


def operator_mode(config: BitQuantConfig) -> int:
    """The integer that tells the operators what to compute: `Mode` in csrc/bindings, without a kernel's index."""
    storage_format = STORAGE_FORMATS.index(config.packed_format)
    quantization = (
        2 if config.activation_dtype == "float32" else ("per_token", "per_tensor").index(config.activation_granularity)
    )
    group_size = config.group_size if config.weight_granularity == "per_group" else 0
    return storage_format << 8 | quantization << 10 | group_size << 16
