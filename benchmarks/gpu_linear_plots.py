"""The report and the roofline plot of a run of bench_gpu_linear.py, from its JSON. Needs no GPU and no PyTorch.

python benchmarks/gpu_linear_plots.py [--json docs/benchmarks/gpu_linear.json] [--output docs/benchmarks]
"""

import argparse
from pathlib import Path

import matplotlib as mpl
from gpu_linear_goals import answers
from gpu_linear_table import (
    BF16_ISSUE_OPS_PER_S,
    INT8_ISSUE_OPS_PER_S,
    as_markdown,
    eager_table,
    limits_table,
    notes,
    number,
    table,
)
from gpu_rows import BF16, DENSE, FLOOR, FP8, TWO_BIT, Run, size_of

mpl.use("Agg")
from matplotlib import pyplot as plt

OPS_PER_BYTE = 8  # of 2bit and a token: 2 operations a weight, 4 weights a byte
PLOT = "gpu_linear_roofline.png"


def plot_roofline(run: Run, path: Path) -> None:
    """TOP/s by batch, one panel for each kernel of ours and rival, under the roofs of 2-bit weights and int8."""
    competitors = [(kernel, TWO_BIT) for kernel in run.kernels] + [(BF16, DENSE), (FP8, DENSE)]
    competitors = [own for own in competitors if any((r.name, r.layer) == own and r.microseconds for r in run.rows)]
    shapes = sorted({row.shape for row in run.rows}, key=lambda shape: shape[0] * shape[1])
    batches = sorted({row.batch for row in run.rows})
    panels = max(1, len(competitors))
    figure, axes_of = plt.subplots(1, panels, figsize=(5 * panels, 4.8), sharey=True, squeeze=False)
    reads = [part["read_bytes_per_s"] for part in run.parts if part["read_bytes_per_s"]]
    for axes, (name, layer) in zip(axes_of[0], competitors, strict=False):
        if reads:
            memory = [OPS_PER_BYTE * batch * max(reads) * 1e-12 for batch in batches]
            label = f"2-bit weights read at {max(reads) * 1e-12:.2f} TB/s"
            axes.plot(batches, memory, color="black", linestyle=":", label=label)
        issue = INT8_ISSUE_OPS_PER_S * 1e-12
        axes.axhline(issue, color="gray", linestyle="--", label=f"int8 tensor cores, {issue:.0f} TOP/s")
        for shape in shapes:
            own = [r for r in run.rows if (r.shape, r.name, r.layer) == (shape, name, layer) and r.microseconds]
            own.sort(key=lambda row: row.batch)
            label = size_of(shape)
            axes.plot([r.batch for r in own], [r.ops_per_s * 1e-12 for r in own], marker="o", markersize=4, label=label)
        axes.set(xscale="log", yscale="log", xlabel="batch", title=name, ylim=(0.5, 2 * issue))
        axes.set_xticks(batches, [str(batch) for batch in batches], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    axes_of[0][0].set_ylabel("TOP/s, whole call, weights from memory")
    axes_of[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def report(run: Run) -> str:
    """The run as Markdown."""
    parts = [f"{part['gpu']} ({', '.join(f'{k} {v}' for k, v in part['versions'].items())})" for part in run.parts]
    lines = [
        "# GPU: linear layers",
        "",
        f"Written by `benchmarks/bench_gpu_linear.py` on {'; '.join(dict.fromkeys(parts))}.",
        "Microseconds of a whole call in bf16, activation quantization included, as a node of a CUDA graph: another",
        "copy of the weights at each node, caches flushed before each replay; medians. fp8 and int_mm get activations",
        "that are quantized already, and int_mm leaves int32 sums. The floor is a plain read of the packed weights or,",
        f"where it takes longer, the product on tensor cores, at {INT8_ISSUE_OPS_PER_S * 1e-12:.0f} TOP/s in int8 and",
        f"{BF16_ISSUE_OPS_PER_S * 1e-12:.0f} TFLOP/s in bf16 (weight-only). `!` marks wrong outputs.",
        "",
        f"![roofline]({PLOT})",
        "",
        *as_markdown(table(run)),
        "",
        "## Limits of the machine",
        "",
        *as_markdown(limits_table(run)),
        "",
        "## Calls outside of a graph",
        "",
        *as_markdown(eager_table(run)),
        "",
        "## Asked for",
        "",
        "| figure | case | asked | measured |",
        "|---|---|---|---|",
    ]
    for answer in answers(run):
        mark = "" if answer.is_reached else " (not reached)"
        lines.append(f"| {answer.kind} | {answer.case} | {answer.asked} | {answer.measured}{mark} |")
    if reasons := notes(run):
        lines += ["", "## Not measured", "", *(f"- {reason}" for reason in reasons)]
    return "\n".join([*lines, "", *all_rows(run)]) + "\n"


def all_rows(run: Run) -> list[str]:
    lines = ["## All measurements", ""]
    lines += [
        "| part | shape | batch | layer | weights | µs | spread | TOP/s | equal bits | error | note |",
        "|---" * 11 + "|",
    ]
    for row in run.rows:
        if row.microseconds is not None:
            rate = "" if row.name == FLOOR else f"{row.ops_per_s * 1e-12:.1f}"
            figures = f"{number(row.microseconds)} | {row.spread:.1%} | {rate}"
            equal = f"{row.equal} of {row.checked}" if row.checked else ""
            error = "" if row.error is None else f"{row.error:.1e}"
            case = f"{row.part} | {size_of(row.shape)} | {row.batch} | {row.name} | {row.layer}"
            lines.append(f"| {case} | {figures} | {equal} | {error} | {row.note} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("docs/benchmarks/gpu_linear.json"), help="of the run")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"), help="folder of the report")
    arguments = parser.parse_args()
    run = Run.read(arguments.json)
    arguments.output.mkdir(parents=True, exist_ok=True)
    plot_roofline(run, arguments.output / PLOT)
    (arguments.output / "gpu_linear.md").write_text(report(run))
    print(f"report and plot: {arguments.output}")


if __name__ == "__main__":
    main()
