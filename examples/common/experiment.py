"""Experiment: trains and measures models by name, then prints the table and writes the plot and results.json."""

import json
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

from bitlayers import BitLayer, memory_report
from common.data import Data
from common.plot import plot
from common.training import Curve, Loss, Recipe, cross_entropy, device_of, evaluate, train


@dataclass
class Row:
    """One row of the table; a loss and an accuracy for each seed."""

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    weight_bytes: int = 0
    latencies: dict[int, float] = field(default_factory=dict)  # batch size -> seconds of a call
    kernel: str = ""


class Experiment:
    """What one program trains and measures.

    Args:
        name: of the program; its plot is called so.
        data: is described on the screen.
        out: folder for plot and results.json.
        latency_batches: batch sizes whose latency is measured.
    """

    def __init__(self, name: str, data: Data, out: Path, latency_batches: tuple[int, ...] = (1, 64)) -> None:
        self.name = name
        self.data = data
        self.out = out
        self.latency_batches = latency_batches
        self.rows: dict[str, Row] = {}
        self.curves: dict[str, Curve] = {}
        self.console = Console()
        self.console.print(f"data: {data.description}", highlight=False, soft_wrap=True)

    def train(self, name: str, model: nn.Module, recipe: Recipe, seed: int, loss_of: Loss = cross_entropy) -> None:
        """Trains `model` with a progress bar, and measures it."""
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(f"{name}, seed {seed}", total=recipe.steps)
            curve = train(model, self.data, recipe, seed, lambda: progress.advance(task), loss_of)
        self.curves.setdefault(name, curve)
        self.measure(name, model)

    def measure(self, name: str, model: nn.Module) -> None:
        """Adds validation loss and accuracy to the row `name`; the first model of that name gives the rest of it."""
        loss, accuracy = evaluate(model, self.data)
        if name not in self.rows:
            kernels = {module.kernel.name for module in model.modules() if isinstance(module, BitLayer)}
            self.rows[name] = Row(
                weight_bytes=memory_report(model).now,
                latencies={batch: latency(model, self.data.validation[:batch][0]) for batch in self.latency_batches},
                kernel=", ".join(sorted(kernels)) or "PyTorch",
            )
        self.rows[name].losses.append(loss)
        self.rows[name].accuracies.append(accuracy)

    def report(self) -> None:
        """Prints the table, and writes the plot and results.json."""
        self.out.mkdir(parents=True, exist_ok=True)
        sizes = {name: row.weight_bytes for name, row in self.rows.items()}
        latencies = {name: row.latencies for name, row in self.rows.items()}
        plot(self.out / f"{self.name}.png", self.curves, sizes, latencies)
        results = {
            "data": self.data.description,
            "rows": {name: asdict(row) for name, row in self.rows.items()},
            "curves": {name: asdict(curve) for name, curve in self.curves.items()},
        }
        (self.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        self.console.print(self._table())
        self.console.print("deployed logits equal eval logits bit for bit, also after a save and a load")
        self.console.print(f"checkpoint, {self.name}.png and results.json: {self.out}/", soft_wrap=True)

    def _table(self) -> Table:
        seeds = max(len(row.losses) for row in self.rows.values())
        table = Table(title=f"{self.name}: validation" + (f", mean of {seeds} seeds" if seeds > 1 else ""))
        for heading in ("model", "loss", "accuracy", "bytes", *(f"batch {batch}" for batch in self.latency_batches)):
            table.add_column(heading, justify="left" if heading == "model" else "right")
        table.add_column("kernel")
        for name, row in self.rows.items():
            times = [f"{row.latencies[batch] * 1e6:,.0f} µs" for batch in self.latency_batches]
            loss, accuracy = statistics.mean(row.losses), statistics.mean(row.accuracies)
            table.add_row(name, f"{loss:.4f}", f"{accuracy:.2%}", f"{row.weight_bytes:,}", *times, row.kernel)
        return table


def latency(model: nn.Module, x: Tensor) -> float:
    """Median seconds of a call in eval mode, of all that fit into a fifth of a second after a warm-up."""
    model.eval()
    x = x.to(device_of(model))
    times: list[float] = []
    with torch.inference_mode():
        for _ in range(3):
            model(x)
        while sum(times) < 0.2:
            start = time.perf_counter()
            model(x)
            if x.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return statistics.median(times)
