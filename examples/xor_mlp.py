"""Train a ternary MLP on the XOR of two signs, the smallest task that needs a hidden layer, and deploy it.

    python examples/xor_mlp.py --compare

The points are drawn by the program: their class is whether the signs of x and y differ.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.utils.data import TensorDataset

from bitmodels import AutoBitModel
from bitmodels.mlp import BitMLPConfig
from common.data import Data
from common.deployment import deploy_and_reload, through_folder
from common.experiment import Experiment
from common.program import BatchSize, Compare, Device, LearningRate, Out, Seed, Steps, program
from common.training import Recipe
from common.twin import dense_twin


def xor_points(seed: int, training: int = 2048, validation: int = 1024) -> Data:
    """Points of the square from -1 to 1, [2], drawn evenly, and 1 where their signs differ, else 0."""
    points = torch.rand(training + validation, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    classes = (points[:, 0] * points[:, 1] < 0).long()
    description = f"points drawn for XOR: {training} to train, {validation} others to test"
    parts = [
        TensorDataset(points[:training], classes[:training]),
        TensorDataset(points[training:], classes[training:]),
    ]
    return Data(description, *parts)


def main(
    compare: Compare = False,
    seed: Seed = 0,
    steps: Steps = 1000,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 0.01,
    hidden: Annotated[int, typer.Option(min=1, help="Width of the hidden layer.")] = 16,
    device: Device = "cpu",
    out: Out = Path("outputs/xor_mlp"),
) -> None:
    """Train a ternary MLP on XOR, deploy it, load it again."""
    experiment = Experiment("xor_mlp", data := xor_points(seed), out)
    recipe = Recipe(steps, batch_size, learning_rate, weight_decay=0.01)
    config = BitMLPConfig(n_layers=2, in_channels=2, hidden_dim=hidden, out_channels=2, dropout=0)
    torch.manual_seed(seed)
    model = AutoBitModel.from_config(config).to(device)
    if compare:
        experiment.train("fp32", dense_twin(model), recipe, seed)
    experiment.train("ternary", model, recipe, seed)
    experiment.measure("deployed", deploy_and_reload(model, data.validation.tensors[0], through_folder(out)))
    experiment.report()


app = program(main)

if __name__ == "__main__":
    app()
