"""Train a ternary MLP beside its fp32 twin on handwritten digits, deploy it, measure both.

python examples/mnist_mlp.py --compare                      scikit-learn's digits, which need no download
python examples/mnist_mlp.py --compare --data FOLDER        MNIST, from its four idx files
python examples/mnist_mlp.py --compare --download           MNIST, fetched into outputs/mnist
"""

import statistics
from pathlib import Path
from typing import Annotated

import torch
import typer

from bitmodels import AutoBitModel
from bitmodels.mlp import BitMLPConfig
from common.deployment import deploy_and_reload, through_folder
from common.experiment import Experiment
from common.images import digits, download_mnist, flat, mnist
from common.program import BatchSize, Compare, Device, LearningRate, Out, Seed, program
from common.training import Recipe
from common.twin import dense_twin

DOWNLOADS = Path("outputs/mnist")


def main(
    data: Annotated[
        Path | None, typer.Option(help="Folder with MNIST's idx files; else scikit-learn's digits.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help=f"Fetch MNIST into {DOWNLOADS}.")] = False,
    compare: Compare = False,
    seed: Seed = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Runs to average over, with seeds from --seed on.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Times that all training images are seen.")] = 40,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 3e-3,
    hidden: Annotated[int, typer.Option(min=1, help="Width of the two hidden layers.")] = 256,
    device: Device = "cpu",
    out: Out = Path("outputs/mnist_mlp"),
) -> None:
    """Train a ternary MLP on handwritten digits, deploy it, load it again."""
    if download:
        download_mnist(data := data or DOWNLOADS)
    images = flat(digits() if data is None else mnist(data))
    experiment = Experiment("mnist_mlp", images, out)
    if data is None:
        experiment.console.print("not MNIST: --data FOLDER or --download trains on that")
    steps = -(-epochs * len(images.training) // batch_size)
    recipe = Recipe(steps, batch_size, learning_rate, weight_decay=0.01)
    pixels = images.validation.tensors[0].shape[1]
    config = BitMLPConfig(n_layers=3, in_channels=pixels, hidden_dim=hidden, out_channels=10, dropout=0.1)
    for run in range(seed, seed + seeds):
        torch.manual_seed(run)
        model = AutoBitModel.from_config(config).to(device)
        if compare:
            experiment.train("fp32", dense_twin(model), recipe, run)
        experiment.train("ternary", model, recipe, run)
        experiment.measure("deployed", deploy_and_reload(model, images.validation.tensors[0], through_folder(out)))
    experiment.report()
    if compare:
        means = {name: statistics.mean(row.accuracies) for name, row in experiment.rows.items()}
        points = 100 * (means["fp32"] - means["deployed"])
        experiment.console.print(f"deployed is {abs(points):.2f} points {'below' if points > 0 else 'above'} fp32")


app = program(main)

if __name__ == "__main__":
    app()
