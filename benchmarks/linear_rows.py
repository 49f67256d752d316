"""The measurements of bench_linear.py: one Row a layer, shape, batch and number of threads."""

import copy
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitcli.measurement.competitors import dynamic_int8
from bitcli.measurement.timing import median_and_spread, median_seconds, seconds_of
from bitcore import BitQuantConfig
from bitlayers import BitLinear

LARGE = ((2560, 2560), (6912, 2560), (4096, 4096), (11008, 4096))  # out_features, in_features of known models
SMALL = ((64, 64), (256, 256), (512, 512), (768, 768))
BATCHES = (1, 4, 16, 64, 128, 512)
QUICK_BATCHES = (1, 64)
COLD_BYTES = 600_000_000  # of weights that take turns, so that each comes from DRAM

BASE3 = BitQuantConfig(storage_format="base3")
WEIGHT_ONLY = BitQuantConfig.weight_only()
INT4 = BitQuantConfig.int4()


@dataclass
class Row:
    """One measurement of a layer's whole Python call."""

    threads: int
    shape: tuple[int, int]  # out_features, in_features
    batch: int
    layer: str
    weights: str  # "hot": in cache; "cold": from DRAM
    seconds: float
    spread: float  # (largest - smallest) / median of the timed loops
    weight_bytes: int
    read_bytes_per_s: float | None = None  # of a plain read beside it, for cold weights

    @property
    def ops_per_s(self) -> float:
        return 2 * self.batch * self.shape[0] * self.shape[1] / self.seconds


def hot(threads: int, shape: tuple[int, int], batch: int, name: str, layer: nn.Module, x: Tensor) -> Row:
    with torch.inference_mode():
        seconds, spread = median_seconds(lambda: layer(x))
    return Row(threads, shape, batch, name, "hot", seconds, spread, weight_bytes(layer))


def cold(threads: int, shape: tuple[int, int], layers: dict[str, nn.Module], x: Tensor) -> Iterator[Row]:
    """Layers whose weights come from DRAM: copies of each take turns. The layers and a plain read of memory take turns
    too, because the memory of a shared machine is not equally fast at all times.
    """
    copies = {
        name: [copy.deepcopy(layer) for _ in range(COLD_BYTES // weight_bytes(layer) + 1)]
        for name, layer in layers.items()
    }
    memory = torch.ones(COLD_BYTES // 8, dtype=torch.int64)
    reads: list[float] = []
    passes: dict[str, list[float]] = {name: [] for name in layers}
    with torch.inference_mode():
        for _ in range(8):
            reads.append(memory.nbytes / seconds_of(memory.max))
            for name, ones in copies.items():
                passes[name].append(seconds_of(lambda: [one(x) for one in ones]) / len(ones))  # noqa: B023
    read = statistics.median(reads[1:])
    for name, layer in layers.items():
        middle, spread = median_and_spread(passes[name][1:])  # the first decides on kernels and touches new pages
        yield Row(threads, shape, 1, name, "cold", middle, spread, weight_bytes(layer), read)


def weight_bytes(layer: nn.Module) -> int:
    if isinstance(layer, BitLinear):
        return layer._packed_weight().packed.nbytes
    return layer.weight().nbytes if callable(layer.weight) else layer.weight.nbytes


def bit_linear(linear: nn.Linear, config: BitQuantConfig | None = None) -> BitLinear:
    return BitLinear.from_linear(linear, config).deploy()


def measure(threads: int, batches: tuple[int, ...]) -> Iterator[Row]:
    """All rows of one number of threads."""
    torch.set_num_threads(threads)
    for shape in SMALL:
        linear, x = nn.Linear(shape[1], shape[0]).eval(), torch.randn(1, shape[1])
        yield hot(threads, shape, 1, "nn.Linear fp32", linear, x)
        yield hot(threads, shape, 1, "BitLinear", bit_linear(linear), x)
    for shape in LARGE:
        linear = nn.Linear(shape[1], shape[0]).eval()
        bf16 = copy.deepcopy(linear).bfloat16()
        x = torch.randn(1, shape[1])
        yield hot(threads, shape, 1, "nn.Linear fp32", linear, x)
        yield hot(threads, shape, 1, "nn.Linear bf16", bf16, x.bfloat16())
        yield hot(threads, shape, 1, "BitLinear base3", bit_linear(linear, BASE3), x)
        yield hot(threads, shape, 1, "BitLinear weight-only bf16", bit_linear(bf16, WEIGHT_ONLY), x.bfloat16())
        yield hot(threads, shape, 1, "BitLinear int4 bf16", bit_linear(bf16, INT4), x.bfloat16())
        yield from cold(
            threads, shape, {"BitLinear": bit_linear(linear), "BitLinear base3": bit_linear(linear, BASE3)}, x
        )
        yield from against_dynamic_int8(threads, shape, batches, linear)
    for batch in batches:
        if batch > 1:
            linear, x = nn.Linear(*LARGE[0]), torch.randn(batch, LARGE[0][1])
            yield hot(threads, LARGE[0], batch, "nn.Linear fp32", linear, x)
            yield hot(threads, LARGE[0], batch, "nn.Linear bf16", linear.bfloat16(), x.bfloat16())
            yield hot(threads, LARGE[0], batch, "BitLinear base3", bit_linear(linear.float(), BASE3), x)


def against_dynamic_int8(
    threads: int, shape: tuple[int, int], batches: tuple[int, ...], linear: nn.Linear
) -> Iterator[Row]:
    torch.set_num_threads(threads)
    rival, ours = dynamic_int8(linear), bit_linear(linear)
    for batch in batches:
        x = torch.randn(batch, shape[1])
        yield hot(threads, shape, batch, "dynamic int8", rival, x)
        yield hot(threads, shape, batch, "BitLinear", ours, x)
