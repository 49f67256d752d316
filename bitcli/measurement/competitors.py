"""One layer's product by BitLab's kernels and by PyTorch, on copies of the weight."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitcore.config import BitQuantConfig
from bitcore.kernels import KernelRegistry, KernelRequest
from bitcore.packed_weight import PackedWeight

COLD_BYTES = 300_000_000  # of weights that take turns, so that each comes from memory: several times most caches
MOST_COPIES = 2000
REFERENCE = "reference"


@dataclass(frozen=True)
class Competitor:
    """One way to multiply. Its calls differ in the copy of the weight that they read."""

    name: str
    weight_bytes: int  # of one copy
    calls: list[Callable[[], Tensor]]

    @property
    def weights_from(self) -> str:
        """Where the weights come from when the calls take turns: "memory" or "cache"."""
        return "memory" if self.weight_bytes * len(self.calls) >= COLD_BYTES else "cache"


def kernel_competitors(
    x: Tensor, weight: Tensor, config: BitQuantConfig, hot: bool, kernels: list[str] | None = None
) -> list[Competitor]:
    """`weight` [N, K] packed, on each kernel that can serve it, best first; on a GPU without the reference kernel,
    which is made of many operators.

    Raises:
        KernelNotFoundError: one of `kernels` does not exist, or cannot serve.
    """
    packed = PackedWeight.from_float(weight, config)
    request = KernelRequest(config, x.device.type, x.dtype, weight.shape[1], weight.shape[0])
    names = kernels or [
        decision.kernel.name
        for decision in KernelRegistry.decide(request)
        if decision.reason is None and (x.device.type == "cpu" or decision.kernel.name != REFERENCE)
    ]
    chosen = [KernelRegistry.resolve(request, forced=name) for name in names]
    copies = [packed._replace(packed=copy) for copy in _copies(packed.packed, hot)]
    return [
        Competitor(kernel.name, packed.packed.nbytes, [partial(kernel.linear, x, copy) for copy in copies])
        for kernel in chosen
    ]


def dense_competitors(x: Tensor, weight: Tensor, dtypes: list[torch.dtype], hot: bool) -> list[Competitor]:
    """F.linear in each of `dtypes`, and on a CPU PyTorch's dynamically quantized int8 layer, if this torch has it."""
    competitors = []
    for dtype in dtypes:
        own_x, copies = x.to(dtype), _copies(weight.to(dtype), hot)
        calls: list[Callable[[], Tensor]] = [partial(F.linear, own_x, copy) for copy in copies]
        competitors.append(Competitor(f"F.linear {str(dtype).removeprefix('torch.')}", copies[0].nbytes, calls))
    if x.device.type == "cpu" and torch.backends.quantized.engine != "none":
        layers = [dynamic_int8(_linear(weight)) for _ in range(_count(weight.numel(), hot))]
        competitors.append(Competitor("dynamic int8", weight.numel(), [partial(layer, x.float()) for layer in layers]))
    return competitors


def dynamic_int8(linear: nn.Linear) -> nn.Module:
    """PyTorch's dynamically quantized int8 linear, which quantizes its activations too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize: Any = torch.ao.quantization.quantize_dynamic
        quantized: nn.Sequential = quantize(nn.Sequential(linear), {nn.Linear}, torch.qint8)
    return quantized[0]


def _linear(weight: Tensor) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear.eval()


def _copies(weight: Tensor, hot: bool) -> list[Tensor]:
    return [weight, *(weight.clone() for _ in range(_count(weight.nbytes, hot) - 1))]


def _count(nbytes: int, hot: bool) -> int:
    return 1 if hot else min(MOST_COPIES, COLD_BYTES // max(nbytes, 1) + 1)
