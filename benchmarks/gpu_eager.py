"""Calls outside of a graph: what Python, the dispatch and the launch of one small layer take."""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from gpu_linear_rows import reason_of
from gpu_rows import EagerRow
from torch import Tensor, nn

from bitcli.measurement.gpu_graph_timing import timing_of
from bitcore.kernels.registry import ENVIRONMENT_VARIABLE
from bitlayers import BitLinear

FEATURES = 256  # in and out
PIPELINED_CALLS, SINGLE_CALLS, REPEATS = 1000, 100, 9
DENSE_LAYER = "nn.Linear bf16"


def measure_eager(kernels: list[str], part: int) -> list[EagerRow]:
    """nn.Linear in bf16 and BitLinear on each of `kernels`, batch 1. They take turns, because CPUs do not keep pace."""
    linear = nn.Linear(FEATURES, FEATURES, bias=False, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    x = torch.randn(1, FEATURES, device="cuda", dtype=torch.bfloat16)
    rows = {name: EagerRow(name, part) for name in (DENSE_LAYER, *kernels)}
    layers: dict[str, Callable[[Tensor], Tensor]] = {}
    with torch.inference_mode():
        for name, row in rows.items():
            try:
                layers[name] = linear if name == DENSE_LAYER else _decided(linear, name, x)
            except Exception as error:  # a row says what went wrong, the others go on
                row.note = reason_of(error)
        times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in layers}
        for _ in range(REPEATS):
            for name, layer in layers.items():
                times[name][0].append(_pipelined(layer, x))
                times[name][1].append(_one_call(layer, x))
    for name, (pipelined, one_call) in times.items():
        timing = timing_of(pipelined)
        rows[name].pipelined, rows[name].spread = timing.microseconds, timing.spread
        rows[name].one_call = statistics.median(one_call)
    return list(rows.values())


def _decided(linear: nn.Linear, kernel: str, x: Tensor) -> BitLinear:
    """A deployed layer that has decided on `kernel` and keeps it, as in a process where the variable is set."""
    with _variable(ENVIRONMENT_VARIABLE, kernel):
        layer = BitLinear.from_linear(linear).deploy()
        for _ in range(20):
            layer(x)
    torch.cuda.synchronize()
    return layer


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _pipelined(layer: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Microseconds a call of a loop that waits once, at its end."""
    for _ in range(50):
        layer(x)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(PIPELINED_CALLS):
        layer(x)
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / PIPELINED_CALLS * 1e6


def _one_call(layer: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Microseconds of a call and the wait for it."""
    times = []
    for _ in range(SINGLE_CALLS):
        start = time.perf_counter()
        layer(x)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6
