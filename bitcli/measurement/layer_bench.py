"""bench_layer: one linear layer by every competitor, beside the machine's limits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitcli.measurement.competitors import Competitor, dense_competitors, kernel_competitors
from bitcli.measurement.cpu_limits import cpu_name, fp32_peak, read_bandwidth
from bitcli.measurement.gpu_graph_timing import time_calls
from bitcli.measurement.gpu_peaks import MEMORY_BYTES, bf16_peak, copy_bandwidth
from bitcli.measurement.timing import time_in_turns
from bitcli.output import track
from bitcore.config import BitQuantConfig

ROUNDS = 9
HOT_CALLS_OF_A_GRAPH, MOST_CALLS_OF_A_GRAPH = 20, 64


@dataclass(frozen=True)
class BenchResult:
    """One competitor."""

    name: str
    weight_bytes: int
    weights_from: str  # "memory" or "cache"
    seconds: float  # of a call, median
    spread: float
    bytes_per_s: float  # of weights
    ops_per_s: float  # 2 for a product and its sum


@dataclass(frozen=True)
class Bench:
    """A run."""

    machine: str
    results: list[BenchResult]
    limits: dict[str, float]  # bytes or operations a second


@torch.inference_mode()
def bench_layer(
    config: BitQuantConfig,
    shape: tuple[int, int],
    tokens: int,
    dtype: torch.dtype,
    device: torch.device,
    hot: bool = False,
    kernels: list[str] | None = None,
) -> Bench:
    """Measures a layer of `shape` (out_features, in_features) on `tokens` rows of `dtype`, with random weights.

    Raises:
        KernelNotFoundError: one of `kernels` does not exist, or cannot serve.
    """
    x = torch.randn(tokens, shape[1], device=device, dtype=dtype)
    weight = torch.randn(shape, device=device)
    dtypes = list(dict.fromkeys([dtype, torch.float32, torch.bfloat16]))
    competitors = kernel_competitors(x, weight, config, hot, kernels) + dense_competitors(x, weight, dtypes, hot)
    if device.type == "cuda":
        times = {each.name: _graph_time(each) for each in track(competitors, "measuring")}
        copied = min(MEMORY_BYTES, torch.cuda.mem_get_info(device)[0] // 4)
        limits = {"copy_bytes_per_s": copy_bandwidth(copied), "bf16_ops_per_s": bf16_peak()}
        machine = torch.cuda.get_device_name(device)
    else:
        times = time_in_turns({each.name: each.calls for each in competitors}, track(range(ROUNDS), "measuring"))
        limits = {"read_bytes_per_s": read_bandwidth(), "fp32_ops_per_s": fp32_peak()}
        threads = torch.get_num_threads()
        machine = f"{cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"
    operations = 2 * tokens * shape[0] * shape[1]
    results = []
    for each in competitors:
        seconds, spread = times[each.name]
        rates = each.weight_bytes / seconds, operations / seconds
        results.append(BenchResult(each.name, each.weight_bytes, each.weights_from, seconds, spread, *rates))
    return Bench(machine, results, limits)


def _graph_time(competitor: Competitor) -> tuple[float, float]:
    calls = competitor.calls

    def call(index: int) -> Tensor:
        return calls[index % len(calls)]()

    count = HOT_CALLS_OF_A_GRAPH if len(calls) == 1 else min(len(calls), MOST_CALLS_OF_A_GRAPH)
    timing = time_calls(call, count)
    return timing.microseconds * 1e-6, timing.spread
