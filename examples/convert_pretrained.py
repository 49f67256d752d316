"""Convert a trained dense network to a ternary one, fine-tune it, deploy it.

    python examples/convert_pretrained.py --compare

The network is plain PyTorch, trained here on scikit-learn's digits. `convert` is the one line that makes it ternary,
all but its first and last layer; then it is fine-tuned with quantization that grows and the dense network as teacher.
--compare trains the dense network for as many steps more.
"""

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitlayers import convert, deploy
from bitlayers.training import logits_distillation_loss, stem_and_head
from common.deployment import deploy_and_reload
from common.experiment import Experiment
from common.images import digits
from common.program import BatchSize, Compare, Device, LearningRate, Out, Seed, Steps, program
from common.training import Recipe, cross_entropy


def network(width: int) -> nn.Sequential:
    """Images [B, 1, 8, 8] -> logits [B, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * width, 4 * width),
        nn.ReLU(),
        nn.Linear(4 * width, 10),
    )


def ternary(model: nn.Module) -> nn.Module:
    """`model` with Bit layers between its first and its last layer."""
    return convert(model, exclude=stem_and_head(model))


def through_file(path: Path, width: int, model: nn.Module) -> nn.Module:
    """Writes the deployed `model` to `path`, and reads it into a new network."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)
    loaded = deploy(ternary(network(width)))
    loaded.load_state_dict(load_file(path))
    return loaded


def main(
    compare: Compare = False,
    seed: Seed = 0,
    steps: Steps = 400,
    dense_steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of the dense network before.")] = 400,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 3e-3,
    width: Annotated[int, typer.Option(min=1, help="Channels of the convolutions.")] = 32,
    device: Device = "cpu",
    out: Out = Path("outputs/convert_pretrained"),
) -> None:
    """Convert a dense network to a ternary one, fine-tune it, deploy it, load it again."""
    experiment = Experiment("convert_pretrained", data := digits(), out)
    torch.manual_seed(seed)
    dense = network(width).to(device)
    experiment.train("dense", dense, Recipe(dense_steps, batch_size, learning_rate), seed)

    model = ternary(deepcopy(dense))
    experiment.measure("converted", model)

    def loss_of(x: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = dense(x)
        return cross_entropy(x, logits, target) + logits_distillation_loss(logits, teacher, temperature=2.0)

    recipe = Recipe(steps, batch_size, learning_rate, lambda_share=0.3)
    if compare:
        experiment.train("fp32", deepcopy(dense), recipe, seed + 1)
    experiment.train("ternary", model, recipe, seed + 1, loss_of)
    reload = partial(through_file, out / "model.safetensors", width)
    experiment.measure("deployed", deploy_and_reload(model, data.validation.tensors[0], reload))
    experiment.report()


app = program(main)

if __name__ == "__main__":
    app()
