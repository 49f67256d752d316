"""CUDA C++ for NVIDIA GPUs (csrc/cuda): int8 tensor cores on packed weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bitcore import extensions
from bitcore.config import BitQuantConfig
from bitcore.kernels.base import KernelRequest
from bitcore.kernels.compiled import CompiledKernel
from bitcore.kernels.registry import KernelRegistry
from bitcore.kernels.training import TrainingOperators
from bitcore.kernels.triton import operators_for_training
from bitcore.packed_weight import PackedWeight

LOWEST_CAPABILITY = (7, 5)  # int8 tensor cores
EARLIEST_STARTS = (9, 0)  # from here on a kernel may start before the one in front has ended (csrc/cuda/launch.cuh)
GROUP_MULTIPLES = {"2bit": 64, "base3": 160, "int4": 32, "int8": 32}  # weights of whole steps of the tensor cores
ROW_SOURCES = ("copy", "add", "relu2", "silu", "gelu")  # as the operators number them
MAX_GROUPS = 4096  # of a row: their sums of activations lie in shared memory


@KernelRegistry.register("cuda", priority=100)
class CudaKernel(CompiledKernel):
    """For NVIDIA GPUs since Turing (compute capability 7.5)."""

    device_types = frozenset({"cuda"})
    why_this_place = "on Hopper a call costs a fifth of triton's; in a graph 0.6 to 1.0, one token 0.8 to 1.3"
    test_in_features = (255, 256, 257, 319, 320, 321, 2048, 2049)  # around its chunks and the turns of a block's warps
    test_out_features = (15, 16, 17, 127, 128, 129)  # around its tiles
    test_rows = (9, 16, 17, 63, 64, 65, 130)  # around its paths and tiles

    def __init__(self, config: BitQuantConfig) -> None:
        super().__init__(config)
        self._training_operators: TrainingOperators | None = None

    def training_operators(self) -> TrainingOperators | None:
        if self._training_operators is None:
            self._training_operators = operators_for_training(self.config)
        return self._training_operators

    def normed_linear_group(
        self,
        source: str,
        x: Tensor,
        other: Tensor | None,
        norm: tuple[Tensor, float] | None,
        weights: Sequence[PackedWeight],
        biases: Sequence[Tensor],
    ) -> list[Tensor]:
        """`linear_group` of rows made of others, for one token in one launch.

        Args:
            source: of ROW_SOURCES: the rows are x, x + other or activation(x) * other.
            x, other: [..., in_features], contiguous; "copy" takes no other.
            norm: weight [in_features] and eps of an RMSNorm of the rows, or None.
            weights: 1 to 4 of the same in_features.
            biases: of all weights, or empty.

        Returns:
            An output for each weight; with "add", behind them the rows before the norm.
        """
        norm_weight, eps = (None, 0.0) if norm is None else norm
        outputs: list[Tensor] = torch.ops.bitlab.normed_linear_group.default(
            x,
            other,
            norm_weight,
            eps,
            ROW_SOURCES.index(source),
            [weight.packed for weight in weights],
            [weight.scale for weight in weights],
            [weight.zero_point for weight in weights if weight.zero_point is not None],
            list(biases),
            weights[0].in_features,
            self._mode,
        )
        return outputs

    @classmethod
    def unavailable_reason(cls) -> str | None:
        missing = extensions.why_cuda_missing()
        if missing is not None:
            return missing
        if not torch.cuda.is_available():
            return "torch sees no GPU"
        capabilities = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
        if max(capabilities) < LOWEST_CAPABILITY:
            major, minor = max(capabilities)
            return f"the GPU has compute capability {major}.{minor}, needs 7.5 (Turing) or newer"
        built = extensions.cuda_architectures()
        if built and not any(
            _runs_on(architecture, capability) for architecture in built for capability in capabilities
        ):
            major, minor = max(capabilities)
            return (
                f"built for compute capability {', '.join(built)}, the GPU has {major}.{minor}; "
                f"rebuild with TORCH_CUDA_ARCH_LIST={major}.{minor}"
            )
        return None

    @classmethod
    def unsupported_reason(cls, request: KernelRequest) -> str | None:
        reason = super().unsupported_reason(request)
        config = request.config
        if config.weight_granularity == "per_group" and (request.in_features or 0) > MAX_GROUPS * config.group_size:
            groups = f"in_features is {request.in_features}, serves up to {MAX_GROUPS} groups a row"
            return groups if reason is None else f"{reason}; {groups}"
        return reason

    @classmethod
    def _group_reason(cls, storage_format: str, group_size: int) -> str | None:
        multiple = GROUP_MULTIPLES[storage_format]
        if group_size % multiple == 0:
            return None
        return f"group_size is {group_size}, serves multiples of {multiple} in {storage_format}"


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for `architecture` ("8.6", "9.0a", "10.0+PTX") runs on a GPU: its own and later minor versions, also
    with instructions of a family ("f"); with PTX all later ones; with those of one architecture ("a") its own alone.

    PTX older than 9.0 does not run on 9.0 and later: kernels are launched there before the one in front has ended, and
    such code would not wait for it.
    """
    name = architecture.removesuffix("+PTX")
    major, minor = (int(part) for part in name.rstrip("af").split("."))
    if name.endswith("a"):
        return capability == (major, minor)
    if architecture.endswith("+PTX") and not name.endswith("f"):
        return capability >= (major, minor) and (major >= EARLIEST_STARTS[0] or capability < EARLIEST_STARTS)
    return capability[0] == major and capability[1] >= minor
