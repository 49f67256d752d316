"""Triton: the same semantics as the CUDA kernels on any GPU that Triton compiles for.

arrange.py writes the activations as int8 in the order in which weights.py decodes packed bytes, product.py multiplies,
tiles.py chooses how it is cut. training.py has the passes of training. Nothing is built; a kernel is compiled at its
first call for a tile. Triton itself is imported with it, so it may be absent.
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from bitcore.config import BitQuantConfig
from bitcore.kernels.base import BitKernelBase, KernelRequest, check_linear_arguments, check_norm_arguments
from bitcore.kernels.compiled import MAX_INT4_IN_FEATURES, operator_mode
from bitcore.kernels.registry import KernelRegistry
from bitcore.kernels.training import TrainingOperators
from bitcore.packed_weight import PackedWeight

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # on the CPU, for tests: Triton reads it at its import
LOWEST_CAPABILITY = (8, 0)  # of NVIDIA GPUs for Triton
GROUP_MULTIPLES = {"2bit": 32, "base3": 160, "int4": 32}  # weights of whole operands of the tensor cores


@KernelRegistry.register("triton", priority=90)
class TritonKernel(BitKernelBase):
    """For GPUs that the CUDA kernels do not serve; with TRITON_INTERPRET=1 on the CPU, slowly, for tests."""

    device_types = frozenset({"cpu" if INTERPRETED else "cuda"})
    why_this_place = "on Hopper in a graph 0.8 to 1.2 times the time of cuda with one token, 1.0 to 1.6 with more"
    weight_dtypes = frozenset({"ternary", "int4"})
    # The interpreter cuts bfloat16 off instead of rounding it.
    dtypes = frozenset({torch.float32, torch.float16} | (set() if INTERPRETED else {torch.bfloat16}))
    test_in_features = (127, 128, 129, 640, 641)  # around its blocks
    test_out_features = (15, 16, 129)  # around its tiles
    test_rows = (17, 65, 130)

    def __init__(self, config: BitQuantConfig) -> None:
        super().__init__(config)
        self._mode = operator_mode(config)
        self._training_operators: TrainingOperators | None = None

    @classmethod
    def unavailable_reason(cls) -> str | None:
        if find_spec("triton") is None:
            return "triton is not installed"
        if INTERPRETED:
            return None
        if not torch.cuda.is_available():
            return "torch sees no GPU"
        capabilities = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
        if torch.version.hip is None and max(capabilities) < LOWEST_CAPABILITY:
            major, minor = max(capabilities)
            return f"the GPU has compute capability {major}.{minor}, Triton needs 8.0 (Ampere) or newer"
        return None

    @classmethod
    def unsupported_reason(cls, request: KernelRequest) -> str | None:
        config = request.config
        reasons = [super().unsupported_reason(request)]
        if config.weight_granularity == "per_group" and config.packed_format in GROUP_MULTIPLES:
            multiple = GROUP_MULTIPLES[config.packed_format]
            if config.group_size % multiple:
                reasons.append(
                    f"group_size is {config.group_size}, serves multiples of {multiple} in {config.packed_format}"
                )
        if config.weight_dtype == "int4" and (request.in_features or 0) > MAX_INT4_IN_FEATURES:
            reasons.append(f"in_features is {request.in_features}, int32 sums hold {MAX_INT4_IN_FEATURES} of int4")
        return "; ".join(reason for reason in reasons if reason) or None

    def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
        return self._linear(x, weight, bias)

    def normed_linear(
        self, x: Tensor, norm_weight: Tensor, norm_eps: float, weight: PackedWeight, bias: Tensor | None = None
    ) -> Tensor:
        from bitcore.kernels.triton.launch import MOST_NORMALIZED  # noqa: PLC0415 - imports triton

        if weight.in_features > MOST_NORMALIZED:
            return super().normed_linear(x, norm_weight, norm_eps, weight, bias)
        check_norm_arguments(x, norm_weight, weight)
        return self._linear(x, weight, bias, norm_weight, norm_eps)

    def _linear(
        self,
        x: Tensor,
        weight: PackedWeight,
        bias: Tensor | None,
        norm_weight: Tensor | None = None,
        norm_eps: float = 0.0,
    ) -> Tensor:
        from bitcore.kernels.triton import operator  # noqa: PLC0415 - imports triton

        check_linear_arguments(x, weight, bias, self.config)
        packed, scale, zero_point, in_features = weight
        y: Tensor = operator.triton_linear(
            x, packed, scale, zero_point, bias, in_features, self._mode, norm_weight, norm_eps
        )
        return y

    def training_operators(self) -> TrainingOperators | None:
        if self._training_operators is None:
            self._training_operators = operators_for_training(self.config)
        return self._training_operators


def operators_for_training(config: BitQuantConfig) -> TrainingOperators | None:
    """The fused operators of training on a GPU, where Triton is installed and `config` has them."""
    if find_spec("triton") is None or not TrainingOperators.serve(config):
        return None
    from bitcore.kernels.triton.training_operators import TritonTrainingOperators  # noqa: PLC0415 - imports triton

    return TritonTrainingOperators(config)
