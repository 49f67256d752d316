"""One figure of a program: training curves, bytes and latency."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl

from common.training import Curve

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the choice of a backend without a screen


def plot(
    path: Path, curves: Mapping[str, Curve], sizes: Mapping[str, int], latencies: Mapping[str, Mapping[int, float]]
) -> None:
    """Losses of the first seed by step; weight bytes; latencies (model -> batch size -> seconds)."""
    figure, (losses, bars, times) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    for name, curve in curves.items():
        (line,) = losses.plot(curve.steps, curve.training, label=f"{name}, training")
        losses.plot(curve.steps, curve.validation, "--", color=line.get_color(), label=f"{name}, validation")
    losses.set(title="loss (first seed)", xlabel="step", ylabel="cross entropy", yscale="log")
    losses.legend()
    drawn = bars.bar(list(sizes), [size / 1024 for size in sizes.values()], color="tab:green")
    bars.bar_label(drawn, fmt="%.0f")
    bars.set(title="weights", ylabel="KiB")
    batches = list(next(iter(latencies.values())))
    width = 0.8 / len(batches)
    for index, batch in enumerate(batches):
        places = [place + (index - (len(batches) - 1) / 2) * width for place in range(len(latencies))]
        drawn = times.bar(places, [values[batch] * 1e6 for values in latencies.values()], width, label=f"batch {batch}")
        times.bar_label(drawn, fmt="%.0f")
    times.set(
        title="latency of the whole model", ylabel="µs", xticks=range(len(latencies)), xticklabels=list(latencies)
    )
    times.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
