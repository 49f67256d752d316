"""Train a ternary MLP beside its fp32 twin on scikit-learn's handwritten digits, deploy it, measure both.

1797 real images of 8 x 8 pixels, inside the scikit-learn package: no download. A quarter of them is the test set. The
ternary model trains with quantization in the loop (QAT) and the same settings as its twin. The program asserts that the
deployed model gives the logits it was evaluated with, bit for bit, also after a save and a load.

    python examples/digits_mlp.py [--seeds 3] [--epochs 40] [--hidden 512] [--out outputs/digits_mlp]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from bitlayers import BitLinear, memory_report
from bitmodels import AutoBitModel
from bitmodels.mlp import BitMLPConfig, BitMLPModel

mpl.use("Agg")
from matplotlib import pyplot as plt

BATCH_SIZE = 64
LATENCY_BATCHES = (1, 64)


@dataclass
class Digits:
    """Images [N, 64], scaled to mean 0 and deviation 1 by the training set, and their labels."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass
class Result:
    """One row of the table."""

    accuracies: list[float] = field(default_factory=list)
    weight_bytes: int = 0
    latencies: dict[int, float] = field(default_factory=dict)  # batch size -> seconds
    kernel: str = ""


def load_data() -> Digits:
    """A fixed split, stratified by digit."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32) for part in split[:2])
    mean, deviation = train_x.mean(), train_x.std()
    train_y, test_y = (torch.tensor(part) for part in split[2:])
    return Digits((train_x - mean) / deviation, train_y, (test_x - mean) / deviation, test_y)


def dense_twin(model: BitMLPModel) -> BitMLPModel:
    """The same MLP with the same initial weights and nn.Linear layers."""
    twin = deepcopy(model)
    for name, layer in list(twin.named_modules()):
        if isinstance(layer, BitLinear):
            linear = nn.Linear(layer.in_features, layer.out_features)
            linear.load_state_dict(layer.state_dict())
            twin.set_submodule(name, linear)
    return twin


def train(model: nn.Module, data: Digits, epochs: int, seed: int, advance: Callable[[], None]) -> list[float]:
    """AdamW with a cosine schedule; returns the mean training loss of each epoch."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    batches = -(-len(data.train_x) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    losses = []
    model.train()
    for _ in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(data.train_x), generator=generator).split(BATCH_SIZE):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(data.train_x[rows]), data.train_y[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        losses.append(total / len(data.train_x))
        advance()
    return losses


def accuracy(model: nn.Module, data: Digits) -> float:
    """Share of the test images that are read right."""
    model.eval()
    with torch.inference_mode():
        return (model(data.test_x).argmax(-1) == data.test_y).float().mean().item()


def latency(model: nn.Module, x: Tensor, repeats: int = 200) -> float:
    """Median seconds of a whole call, after a warm-up."""
    model.eval()
    with torch.inference_mode():
        for _ in range(20):
            model(x)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            model(x)
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(result: Result, model: nn.Module, data: Digits) -> None:
    """Fills in bytes, latencies and the kernels that served."""
    kernels = {module.kernel.name for module in model.modules() if isinstance(module, BitLinear)}
    result.kernel = ", ".join(sorted(kernels)) or "F.linear"
    result.weight_bytes = memory_report(model).now
    result.latencies = {batch: latency(model, data.test_x[:batch].contiguous()) for batch in LATENCY_BATCHES}


def deploy_and_check(model: BitMLPModel, data: Digits, directory: Path) -> BitMLPModel:
    """Deploys `model` and asserts that neither that nor a save and a load changes a bit of its logits."""
    model.eval()
    with torch.inference_mode():
        evaluated = model(data.test_x)
        model.deploy()
        assert torch.equal(model(data.test_x), evaluated), "deployed logits differ from eval logits"
        model.save_pretrained(directory)
        loaded = AutoBitModel.from_pretrained(directory)
        assert torch.equal(loaded(data.test_x), evaluated), "logits differ after a save and a load"
    return model


def plot(losses: dict[str, list[float]], results: dict[str, Result], path: Path) -> None:
    """Training curves, bytes and latency bars."""
    figure, (curves, sizes, times) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for name, values in losses.items():
        curves.plot(range(1, len(values) + 1), values, label=name)
    curves.set(title="training loss (first seed)", xlabel="epoch", ylabel="cross entropy", yscale="log")
    curves.legend()
    bars = sizes.bar(list(results), [result.weight_bytes / 1024 for result in results.values()], color="tab:green")
    sizes.bar_label(bars, fmt="%.0f")
    sizes.set(title="weights", ylabel="KiB")
    width = 0.8 / len(LATENCY_BATCHES)
    for index, batch in enumerate(LATENCY_BATCHES):
        places = [place + (index - 0.5) * width for place in range(len(results))]
        bars = times.bar(
            places, [result.latencies[batch] * 1e6 for result in results.values()], width, label=f"batch {batch}"
        )
        times.bar_label(bars, fmt="%.0f")
    times.set(title="latency of the whole model", ylabel="µs", xticks=range(len(results)), xticklabels=list(results))
    times.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table_of(results: dict[str, Result], seeds: int) -> Table:
    """The table that the program prints."""
    table = Table(title=f"scikit-learn digits, test accuracy as the mean of {seeds} seeds")
    for heading in ("model", "accuracy", "bytes", *(f"batch {batch}" for batch in LATENCY_BATCHES), "kernel"):
        table.add_column(heading, justify="left" if heading in ("model", "kernel") else "right")
    for name, result in results.items():
        times = [f"{result.latencies[batch] * 1e6:.1f} µs" for batch in LATENCY_BATCHES]
        table.add_row(
            name, f"{statistics.mean(result.accuracies):.2%}", f"{result.weight_bytes:,}", *times, result.kernel
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs to average over")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--hidden", type=int, default=512, help="width of the two hidden layers")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/digits_mlp"), help="where the checkpoint and the plot go"
    )
    arguments = parser.parse_args()
    if min(arguments.seeds, arguments.epochs, arguments.hidden) < 1:
        parser.error("--seeds, --epochs and --hidden are 1 or more")

    console = Console()
    data = load_data()
    config = BitMLPConfig(n_layers=3, in_channels=64, hidden_dim=arguments.hidden, out_channels=10, dropout=0.1)
    results = {"fp32": Result(), "ternary QAT": Result(), "deployed": Result()}
    losses: dict[str, list[float]] = {}
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        for seed in range(arguments.seeds):
            torch.manual_seed(seed)
            ternary = AutoBitModel.from_config(config)
            for name, model in (("fp32", dense_twin(ternary)), ("ternary QAT", ternary)):
                torch.manual_seed(seed)
                task = progress.add_task(f"seed {seed}: {name}", total=arguments.epochs)
                curve = train(model, data, arguments.epochs, seed, lambda task=task: progress.advance(task))
                results[name].accuracies.append(accuracy(model, data))
                if seed == 0:
                    losses[name] = curve
                    measure(results[name], model, data)
            deployed = deploy_and_check(ternary, data, arguments.out)
            results["deployed"].accuracies.append(accuracy(deployed, data))
            if seed == 0:
                measure(results["deployed"], deployed, data)

    plot(losses, results, arguments.out / "digits_mlp.png")
    console.print(table_of(results, arguments.seeds))
    difference = statistics.mean(results["fp32"].accuracies) - statistics.mean(results["deployed"].accuracies)
    for name, result in results.items():
        console.print(f"{name} by seed: {', '.join(f'{share:.2%}' for share in result.accuracies)}")
    console.print(f"deployed is {abs(difference) * 100:.2f} points {'below' if difference > 0 else 'above'} fp32")
    console.print("deployed logits equal eval logits bit for bit, also after a save and a load")
    console.print(f"checkpoint and plot: {arguments.out}/ (model.safetensors, config.json, digits_mlp.png)")


if __name__ == "__main__":
    main()
