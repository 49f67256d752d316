"""How long calls take on a CPU: medians, and how much they spread."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle

WARM_UP_CALLS = 100  # at most


def median_seconds(call: Callable[[], object], seconds: float = 0.3, repeats: int = 9) -> tuple[float, float]:
    """Median seconds of a call and the spread, (largest - smallest) / median, of `repeats` timed loops.

    A warm-up comes first; each loop runs long enough to fill its part of `seconds`.
    """
    call()
    loops = max(1, int(seconds / repeats / seconds_of(call)))
    for _ in range(min(loops, WARM_UP_CALLS)):
        call()
    times = [_loop_seconds(call, loops) for _ in range(repeats)]
    return median_and_spread(times)


def time_in_turns(
    calls: Mapping[str, Sequence[Callable[[], object]]], rounds: Iterable[object], seconds: float = 0.05
) -> dict[str, tuple[float, float]]:
    """Median seconds of a call, and the spread, of competitors that take turns: a machine is not equally fast at all
    times, above all one that is shared.

    Args:
        calls: by competitor: calls that differ in the memory that they read, made one after the other, round and round.
        rounds: how often each competitor has its turn; progress can be shown by what iterates.
        seconds: of a turn; at least one call.
    """
    rings = {name: cycle(own) for name, own in calls.items()}
    loops = {}
    for name, ring in rings.items():
        next(ring)()
        loops[name] = max(1, int(seconds / seconds_of(next(ring))))
        for _ in range(min(loops[name], WARM_UP_CALLS)):
            next(ring)()
    times: dict[str, list[float]] = {name: [] for name in rings}
    for _ in rounds:
        for name, ring in rings.items():
            times[name].append(_loop_seconds(partial(_call_next, ring), loops[name]))
    return {name: median_and_spread(own) for name, own in times.items()}


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of one call, never 0."""
    start = time.perf_counter()
    call()
    return max(time.perf_counter() - start, 1e-7)


def median_and_spread(times: Sequence[float]) -> tuple[float, float]:
    """The median, and (largest - smallest) / median."""
    middle = statistics.median(times)
    return middle, (max(times) - min(times)) / middle


def _call_next(ring: Iterator[Callable[[], object]]) -> None:
    next(ring)()


def _loop_seconds(call: Callable[[], object], loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        call()
    return (time.perf_counter() - start) / loops
