"""What bench_gpu_linear.py calls: BitLinear on one of our kernels, PyTorch's matrix products, and a plain read."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from gpu_rows import BASE3, BF16, DENSE, FLOOR, FP8, INT8, TWO_BIT, WEIGHT_ONLY, Shape
from torch import Tensor, nn
from torch.nn import functional as F

from bitcore import BitQuantConfig
from bitcore.kernels import KernelRegistry
from bitlayers import BitLinear

try:
    import gpu_read_kernel
except ImportError:  # without Triton
    gpu_read_kernel = None  # type: ignore[assignment]

DEVICE = "cuda"
COPIES_BYTES = 800_000_000  # of weights that take turns, so that each comes from memory
MOST_COPIES, LEAST_COPIES = 64, 3
CONFIGS = {
    TWO_BIT: BitQuantConfig(),
    WEIGHT_ONLY: BitQuantConfig.weight_only(),
    BASE3: BitQuantConfig(storage_format="base3"),
}


@dataclass
class Check:
    """How an output compares: bit for bit with the reference kernel's, or by its error against float64."""

    checked: int = 0
    equal: int = 0
    error: float | None = None


def copies_of(tensor: Tensor) -> list[Tensor]:
    """`tensor` and enough copies, their rows in another order: nothing that a cache could have seen."""
    count = min(MOST_COPIES, max(LEAST_COPIES, -(-COPIES_BYTES // tensor.nbytes)))
    raw = tensor.view(torch.uint8)
    return [tensor, *(raw.roll(index, 0).view(tensor.dtype) for index in range(1, count))]


class Weights:
    """The weights of one shape: a dense layer, and what is made of it when it is first needed."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.linear = nn.Linear(shape[1], shape[0], bias=False, device=DEVICE, dtype=torch.bfloat16)
        self.linear.requires_grad_(False)
        self._layers: dict[str, list[BitLinear]] = {}

    def layers(self, config: str) -> list[BitLinear]:
        """Deployed layers of one of CONFIGS."""
        if config not in self._layers:
            first = BitLinear.from_linear(self.linear, CONFIGS[config]).deploy()
            packed = copies_of(first.weight_packed)
            layers = [first, *(copy.deepcopy(first) for _ in packed[1:])]
            for layer, own in zip(layers, packed, strict=True):
                layer.weight_packed = own
            self._layers[config] = layers
        return self._layers[config]

    @cached_property
    def ternary(self) -> Tensor:
        """int8 values [N, K] of the deployed layer."""
        return self.layers(TWO_BIT)[0].qweight


class Competitor(ABC):
    """One way to multiply tokens with the weights of one shape, on each of several copies of the weights."""

    name: str
    layer: str = DENSE
    variants: Sequence[object] = (None,)  # the fastest counts

    def __init__(self, weights: Weights) -> None:
        self.shape = weights.shape
        self.copies: Sequence[object] = self._copies(weights)

    @abstractmethod
    def _copies(self, weights: Weights) -> Sequence[object]:
        """What differs from call to call."""

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Of one copy."""

    @abstractmethod
    def call(self, index: int, x: Tensor, variant: object) -> Tensor:
        """The call that is timed, on copy `index`."""

    def tokens(self, batch: int, draw: int) -> Tensor:
        """Random input [batch, K], as it arrives. The values of a draw are the same for all who take floats."""
        generator = torch.Generator(DEVICE).manual_seed(draw)
        return torch.randn(batch, self.shape[1], device=DEVICE, dtype=torch.bfloat16, generator=generator)

    def forced(self) -> AbstractContextManager[None]:
        """Open around all calls."""
        return nullcontext()

    def check(self, index: int, x: Tensor, y: Tensor) -> Check:
        """Judges `y`, the output of copy `index` for `x`."""
        return Check()


class Packed(Competitor):
    """A deployed BitLinear, called as a user calls it, forced to the kernel `name`."""

    def __init__(self, weights: Weights, name: str, layer: str) -> None:
        self.name, self.layer = name, layer
        super().__init__(weights)

    def _copies(self, weights: Weights) -> Sequence[BitLinear]:
        return weights.layers(self.layer)

    @property
    def weight_bytes(self) -> int:
        return self.copies[0].weight_packed.nbytes

    def forced(self) -> AbstractContextManager[None]:
        return KernelRegistry.use(self.name)

    def call(self, index: int, x: Tensor, variant: object) -> Tensor:
        return self.copies[index](x)

    def check(self, index: int, x: Tensor, y: Tensor) -> Check:
        layer = self.copies[index]
        if self.layer == WEIGHT_ONLY:
            values, scale = layer.get_quantized_weight()
            return Check(error=relative_error(y, x, values, scale))
        with KernelRegistry.use("reference"):
            expected = layer(x)
        return Check(y.numel(), same_bits(y, expected))


class Dense(Competitor):
    """F.linear in bf16 with the weights that the deployed layer was made from."""

    name = BF16
    least_batch = 1

    def _copies(self, weights: Weights) -> Sequence[Tensor]:
        return copies_of(weights.linear.weight.detach())

    @property
    def weight_bytes(self) -> int:
        return self.copies[0].nbytes

    def call(self, index: int, x: Tensor, variant: object) -> Tensor:
        return F.linear(x, self.copies[index])

    def check(self, index: int, x: Tensor, y: Tensor) -> Check:
        return Check(error=relative_error(y, x, self.copies[index]))


class Float8(Dense):
    """torch._scaled_mm: e4m3 tokens, quantized already, and ternary weights, which e4m3 holds exactly."""

    name = FP8
    variants = ("fast accumulation", "exact accumulation")

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.scale = torch.ones((), device=DEVICE)

    def _copies(self, weights: Weights) -> Sequence[Tensor]:
        return copies_of(weights.ternary.to(torch.float8_e4m3fn))

    def tokens(self, batch: int, draw: int) -> Tensor:
        return super().tokens(batch, draw).to(torch.float8_e4m3fn)

    def call(self, index: int, x: Tensor, variant: object) -> Tensor:
        return torch._scaled_mm(
            x,
            self.copies[index].t(),
            scale_a=self.scale,
            scale_b=self.scale,
            out_dtype=torch.bfloat16,
            use_fast_accum=variant == self.variants[0],
        )


class IntegerProduct(Dense):
    """torch._int_mm: int8 tokens, quantized already, to int32 sums, not scaled."""

    name = INT8
    least_batch = 17  # it refuses less

    def _copies(self, weights: Weights) -> Sequence[Tensor]:
        return copies_of(weights.ternary)

    def tokens(self, batch: int, draw: int) -> Tensor:
        return torch.randint(-127, 128, (batch, self.shape[1]), device=DEVICE, dtype=torch.int8)

    def call(self, index: int, x: Tensor, variant: object) -> Tensor:
        return torch._int_mm(x, self.copies[index].t())


class Read(Competitor):
    """The packed bytes read, and nothing else: no layer can be faster. Tokens do not matter."""

    name = FLOOR

    def __init__(self, weights: Weights, layer: str) -> None:
        if gpu_read_kernel is None:
            raise ImportError("Triton is not installed")
        self.layer = layer
        self.variants = gpu_read_kernel.LAUNCH_SHAPES
        self.found = torch.zeros(4096, dtype=torch.int32, device=DEVICE)
        super().__init__(weights)

    def _copies(self, weights: Weights) -> Sequence[Tensor]:
        return [gpu_read_kernel.words_of(layer.weight_packed) for layer in weights.layers(self.layer)]

    @property
    def weight_bytes(self) -> int:
        return self.copies[0].nbytes

    def call(self, index: int, x: Tensor, variant: object) -> Tensor:
        gpu_read_kernel.read(self.copies[index], self.found, variant)
        return self.found


RIVALS: dict[str, type[Dense]] = {"bf16": Dense, "fp8": Float8, "int_mm": IntegerProduct}


def same_bits(y: Tensor, expected: Tensor) -> int:
    """How many elements are equal, bit for bit."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32}[y.element_size()]
    return int((y.view(integers) == expected.view(integers)).sum())


def relative_error(y: Tensor, x: Tensor, weight: Tensor, scale: Tensor | None = None) -> float:
    """||y - y64|| / ||y64||, where y64 is x @ weight.T * scale in float64."""
    expected = x.float().double() @ weight.float().double().T
    if scale is not None:
        expected = expected * scale.double()
    return float((y.double() - expected).norm() / expected.norm())
