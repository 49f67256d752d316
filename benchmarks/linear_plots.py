"""The two pictures of a run: operations a second by batch, and the roofline."""

from pathlib import Path

import matplotlib as mpl
from linear_goals import where
from linear_rows import LARGE, Row
from machine_limits import Limits

mpl.use("Agg")
from matplotlib import pyplot as plt

OPS_PER_BYTE = 8  # 2 operations a weight and token, 4 weights a byte of 2bit


def plot_by_batch(rows: list[Row], limits: dict[int, Limits], path: Path) -> None:
    """GOP/s of every layer by batch, at the first large shape, one panel a number of threads."""
    figure, panels = plt.subplots(1, len(limits), figsize=(6 * len(limits), 4.5), sharey=True, squeeze=False)
    for axes, (threads, limit) in zip(panels[0], sorted(limits.items()), strict=True):
        for layer in ("BitLinear", "BitLinear base3", "dynamic int8", "nn.Linear bf16", "nn.Linear fp32"):
            own = [r for r in rows if (r.threads, r.shape, r.layer, r.weights) == (threads, LARGE[0], layer, "hot")]
            own.sort(key=lambda row: row.batch)
            axes.plot([r.batch for r in own], [r.ops_per_s * 1e-9 for r in own], marker="o", label=layer)
        if limit.dot_ops_per_s:
            axes.axhline(limit.dot_ops_per_s * 1e-9, color="gray", linestyle="--", label="int8 dot instructions")
        axes.set(xscale="log", yscale="log", xlabel="batch", title=where(threads, LARGE[0]))
        axes.legend(fontsize=8)
    panels[0][0].set_ylabel("GOP/s, whole call, weights in cache")
    save(figure, path)


def plot_roofline(rows: list[Row], limits: dict[int, Limits], path: Path) -> None:
    """BitLinear in 2bit against the roofs: operations a second over operations a byte of packed weights."""
    figure, panels = plt.subplots(1, len(limits), figsize=(6 * len(limits), 4.5), sharey=True, squeeze=False)
    intensity = [OPS_PER_BYTE * 2 ** (i / 8) for i in range(73)]  # batches 1 to 512
    for axes, (threads, limit) in zip(panels[0], sorted(limits.items()), strict=True):
        peak = limit.dot_ops_per_s or float("inf")
        roof = [min(peak, value * limit.read_bytes_per_s) * 1e-9 for value in intensity]
        axes.plot(intensity, roof, color="black", label="roof: DRAM read, int8 dot instructions")
        for weights, marker in (("cold", "s"), ("hot", "o")):
            own = [r for r in rows if (r.threads, r.layer, r.weights) == (threads, "BitLinear", weights)]
            own = [r for r in own if r.shape in LARGE]
            axes.scatter(
                [OPS_PER_BYTE * r.batch for r in own],
                [r.ops_per_s * 1e-9 for r in own],
                marker=marker,
                label=f"BitLinear, weights {weights}",
            )
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="operations a byte of packed weights",
            title=f"{threads} thread{'s' if threads > 1 else ''}",
        )
        axes.legend(fontsize=8)
    panels[0][0].set_ylabel("GOP/s, whole call")
    save(figure, path)


def save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
