"""How long a GPU takes for a call: a CUDA graph of many calls, each on its own copy of the weights, caches flushed."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

FLUSH_BYTES = 256 * 2**20  # several times the L2 of any GPU
MOST_REPLAYS, LEAST_REPLAYS = 15, 7
LONG_MILLISECONDS = 5.0  # graphs that take longer are replayed LEAST_REPLAYS times


@dataclass
class Timing:
    """Microseconds a call."""

    microseconds: float
    spread: float  # (80 % quantile - 20 % quantile) / median


class CapturedCalls:
    """`call(0)` to `call(count - 1)` as one CUDA graph. `y` is what the last one gave; each replay writes it."""

    def __init__(self, call: Callable[[int], Tensor], count: int) -> None:
        self.count = count
        self._graph = torch.cuda.CUDAGraph()
        stream = _side_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # first calls compile, tune and load, which a capture forbids
            for index in range(min(count, 3)):
                call(index)
        torch.cuda.synchronize()
        with torch.cuda.graph(self._graph, stream=stream):
            for index in range(count):
                self.y = call(index)  # the one before is freed: the graph needs memory for two outputs

    def replay(self) -> None:
        self._graph.replay()

    def time(self) -> Timing:
        """Replays with weights and activations from memory: before each replay, 256 MiB are written.

        The writing also keeps the GPU busy while the CPU launches the graph.
        """
        flush = _flush_buffer()
        self.replay()  # the first one brings the graph to the GPU
        start, end = _event(), _event()
        start.record()
        self.replay()
        end.record()
        torch.cuda.synchronize()
        replays = MOST_REPLAYS if start.elapsed_time(end) < LONG_MILLISECONDS else LEAST_REPLAYS
        events = [(_event(), _event()) for _ in range(replays)]
        for _ in range(4):  # a lead for the CPU
            flush.fill_(1)
        for number, (start, end) in enumerate(events):
            flush.fill_(number)
            start.record()
            self.replay()
            end.record()
        torch.cuda.synchronize()
        return timing_of([start.elapsed_time(end) * 1e3 / self.count for start, end in events])


def timing_of(times: list[float]) -> Timing:
    """Median and spread of `times`."""
    middle = statistics.median(times)
    quantiles = statistics.quantiles(times, n=5, method="inclusive")
    return Timing(middle, (quantiles[3] - quantiles[0]) / middle)


def time_calls(call: Callable[[int], Tensor], count: int) -> Timing:
    """`CapturedCalls.time`, where the outputs do not matter."""
    return CapturedCalls(call, count).time()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@cache
def _side_stream() -> torch.cuda.Stream:
    """One for all captures: cuBLAS keeps a workspace for every stream."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


@cache
def _flush_buffer() -> Tensor:
    return torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")
