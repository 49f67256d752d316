"""The contract between a layer and a kernel: KernelRequest, Decision, BitKernelBase."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from bitcore.checks import check_config
from bitcore.config import BitQuantConfig
from bitcore.exceptions import DeviceError, DtypeError, ShapeError
from bitcore.kernels.training import TrainingOperators
from bitcore.packed_weight import PackedWeight

MAX_IN_FEATURES = 2**23  # int32 sums of int8 activations x ternary weights are exact up to here


@dataclass(frozen=True)
class KernelRequest:
    """What a layer asks of a kernel. The batch size is left out on purpose: it changes from call to call."""

    config: BitQuantConfig
    device_type: str
    dtype: torch.dtype
    in_features: int | None = None
    out_features: int | None = None

    def __post_init__(self) -> None:
        check_config(self.config)

    def __str__(self) -> str:
        sizes = "" if self.in_features is None else f", [{self.out_features}, {self.in_features}]"
        return f"{self.config}{sizes}, {self.dtype} on {self.device_type}"


@dataclass(frozen=True)
class Decision:
    """The verdict on one kernel: `reason` is None when it can serve."""

    kernel: "type[BitKernelBase]"
    reason: str | None


class BitKernelBase(ABC):
    """One way to compute y = (quantize(x) @ values.T) * scale + bias.

    A layer's life with its kernel:
      decide   `unavailable_reason()` (this machine), then `unsupported_reason(request)` (this layer)
      linear   every call, on the packed bytes as they are; picks its own variant by the number of rows

    A class attribute that names what is served is None where everything is.
    """

    name: ClassVar[str]  # both set by @KernelRegistry.register
    priority: ClassVar[int]
    has_cpp_backend: ClassVar[bool] = False
    why_this_place: ClassVar[str] = ""  # in the order of kernels, for `explain`: what was measured
    device_types: ClassVar[frozenset[str] | None] = None
    weight_dtypes: ClassVar[frozenset[str] | None] = None
    weight_granularities: ClassVar[frozenset[str] | None] = None
    storage_formats: ClassVar[frozenset[str] | None] = None
    activation_dtypes: ClassVar[frozenset[str] | None] = None
    dtypes: ClassVar[frozenset[torch.dtype] | None] = None

    # Sizes that hit this kernel's own edges: its tests add them to the ordinary ones.
    test_in_features: ClassVar[tuple[int, ...]] = ()
    test_out_features: ClassVar[tuple[int, ...]] = ()
    test_rows: ClassVar[tuple[int, ...]] = ()

    def __init__(self, config: BitQuantConfig) -> None:
        self.config = config

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # holds nothing of a layer

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"

    @classmethod
    def unavailable_reason(cls) -> str | None:
        """Why this machine cannot run the kernel at all, or None."""
        return None

    @classmethod
    def unsupported_reason(cls, request: KernelRequest) -> str | None:
        """Everything that speaks against `request`, joined by "; ", or None. Must not look at tensor values."""
        config = request.config
        checks: list[tuple[str, object, frozenset[object] | None]] = [
            ("device", request.device_type, cls._objects(cls.device_types)),
            ("weight_dtype", config.weight_dtype, cls._objects(cls.weight_dtypes)),
            ("weight_granularity", config.weight_granularity, cls._objects(cls.weight_granularities)),
            ("activation_dtype", config.activation_dtype, cls._objects(cls.activation_dtypes)),
            ("dtype", request.dtype, cls._objects(cls.dtypes)),
        ]
        if config.weight_dtype == "ternary":
            checks.append(("storage_format", config.storage_format, cls._objects(cls.storage_formats)))
        reasons = [
            f"{what} is {value}, serves {', '.join(sorted(map(str, served)))}"
            for what, value, served in checks
            if served is not None and value not in served
        ]
        if request.in_features is not None and request.in_features > MAX_IN_FEATURES:
            reasons.append(f"in_features is {request.in_features}, int32 sums are exact up to {MAX_IN_FEATURES}")
        return "; ".join(reasons) or None

    @staticmethod
    def _objects(served: frozenset[str] | frozenset[torch.dtype] | None) -> frozenset[object] | None:
        return None if served is None else frozenset(served)

    @abstractmethod
    def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
        """Maps x [..., K] float, weight [N, K] and bias [N] or None to y [..., N] in x's dtype.

        Raises:
            ShapeError, DtypeError, DeviceError: an argument does not fit; nothing has been computed.
        """

    def linear_group(self, x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]) -> list[Tensor]:
        """`linear` of one x with several weights, bit for bit. A kernel that can quantizes x once for all."""
        return [self.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]

    def normed_linear(
        self, x: Tensor, norm_weight: Tensor, norm_eps: float, weight: PackedWeight, bias: Tensor | None = None
    ) -> Tensor:
        """`linear` of the RMSNorm of x [..., K], whose weight [K] has its dtype (arXiv 1910.07467).

        A kernel that can normalizes where it quantizes; then the order of the sum of squares is its own.

        Raises:
            ShapeError, DtypeError, DeviceError: an argument does not fit; nothing has been computed.
        """
        check_norm_arguments(x, norm_weight, weight)
        return self.linear(F.rms_norm(x, norm_weight.shape, norm_weight, norm_eps), weight, bias)

    def training_operators(self) -> TrainingOperators | None:
        """What trains layers on this kernel's product, where that is faster than a dense product in floating point."""
        return None


def check_input(x: Tensor, in_features: int, device: torch.device) -> None:
    """Raises the typed error of an `x` that is no floating-point [..., in_features] on `device`."""
    if not x.is_floating_point():
        raise DtypeError("x", x.dtype, "a floating-point dtype")
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise ShapeError("x", f"of shape {list(x.shape)}", f"[..., {in_features}] (in_features)")
    if x.device != device:
        raise DeviceError("x", f"on {x.device}", f"on {device}, where the weight is")


def check_norm_arguments(x: Tensor, norm_weight: Tensor, weight: PackedWeight) -> None:
    """Raises the typed error of an `x` or a weight of the norm in front of `linear` that does not fit."""
    check_input(x, weight.in_features, weight.packed.device)
    if norm_weight.shape != (weight.in_features,):
        raise ShapeError("norm_weight", f"of shape {list(norm_weight.shape)}", f"[{weight.in_features}] (in_features)")
    if norm_weight.dtype != x.dtype:
        raise DtypeError("norm_weight", norm_weight.dtype, f"{x.dtype}, x's dtype")
    if norm_weight.device != x.device:
        raise DeviceError("norm_weight", f"on {norm_weight.device}", f"on {x.device}, where x is")


def check_linear_arguments(x: Tensor, weight: PackedWeight, bias: Tensor | None, config: BitQuantConfig) -> None:
    """Raises the typed error of the first argument of `linear` that does not fit `config` or the others."""
    weight.check_layout(config)
    check_input(x, weight.in_features, weight.packed.device)
    out_features = weight.packed.shape[0]
    if bias is not None and bias.device != x.device:
        raise DeviceError("bias", f"on {bias.device}", f"on {x.device}, where x is")
    if bias is not None and bias.shape != (out_features,):
        raise ShapeError("bias", f"of shape {list(bias.shape)}", f"[{out_features}] (out_features)")
    if bias is not None and not bias.is_floating_point():
        raise DtypeError("bias", bias.dtype, "a floating-point dtype")
    if weight.scale.dtype != torch.float32:
        raise DtypeError("weight_scale", weight.scale.dtype, "torch.float32")
