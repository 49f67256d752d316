"""Train a ternary convolutional network on small photographs, deploy it, measure it beside its fp32 twin.

    python examples/cifar10_cnn.py --compare                    patches of scikit-learn's two sample photographs
    python examples/cifar10_cnn.py --compare --data FOLDER      CIFAR-10, from the files of its binary version

The first convolution and the classifier stay in floating point; what is between them is BitConv2d and BitLinear.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from pydantic import Field
from torch import Tensor, nn

from bitcore import BitQuantConfig
from bitlayers import BitConv2d, BitLinear
from bitmodels import BitModelBase, BitModelConfig, register_model
from common.deployment import deploy_and_reload, through_folder
from common.experiment import Experiment
from common.images import cifar10, photograph_patches
from common.program import BatchSize, Compare, DenseLearningRate, Device, LearningRate, Out, Seed, Steps, program
from common.training import Recipe
from common.twin import dense_twin


class CnnConfig(BitModelConfig):
    """Sizes of a Cnn."""

    width: int = Field(default=32, ge=1, description="channels of the first convolution")
    classes: int = Field(default=10, ge=2)


@register_model("cifar10_cnn")
class Cnn(BitModelBase):
    """Images [B, 3, 32, 32] -> logits [B, classes]."""

    config_class = CnnConfig

    def __init__(self, config: CnnConfig, quant_config: BitQuantConfig | None = None) -> None:
        super().__init__(config, quant_config)
        width = config.width

        def convolution(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
            layer = BitConv2d(in_channels, out_channels, 3, stride, 1, bias=False, quant_config=self.quant_config)
            return [layer, nn.BatchNorm2d(out_channels), nn.ReLU()]

        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            *convolution(width, width, stride=1),
            *convolution(width, 2 * width, stride=2),
            *convolution(2 * width, 2 * width, stride=1),
            *convolution(2 * width, 4 * width, stride=2),
            nn.Flatten(),
            nn.RMSNorm(4 * width * 16),
            BitLinear(4 * width * 16, 4 * width, quant_config=self.quant_config),
            nn.ReLU(),
            nn.Linear(4 * width, config.classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with CIFAR-10's .bin files; else photographs.")] = None,
    compare: Compare = False,
    seed: Seed = 0,
    steps: Steps = 500,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 3e-3,
    dense_learning_rate: DenseLearningRate = 1e-3,
    width: Annotated[int, typer.Option(min=1, help="Channels of the first convolution.")] = 32,
    device: Device = "cpu",
    out: Out = Path("outputs/cifar10_cnn"),
) -> None:
    """Train a ternary CNN on small photographs, deploy it, load it again."""
    images = photograph_patches() if data is None else cifar10(data)
    experiment = Experiment("cifar10_cnn", images, out)
    if data is None:
        experiment.console.print("not CIFAR-10: --data FOLDER trains on that")
    recipe = Recipe(steps, batch_size, learning_rate, weight_decay=0.05)
    classes = 1 + int(images.validation.tensors[1].max())
    torch.manual_seed(seed)
    model = Cnn(CnnConfig(width=width, classes=classes)).to(device)
    if compare:
        experiment.train("fp32", dense_twin(model), replace(recipe, learning_rate=dense_learning_rate), seed)
    experiment.train("ternary", model, recipe, seed)
    experiment.measure("deployed", deploy_and_reload(model, images.validation.tensors[0][:256], through_folder(out)))
    experiment.report()


app = program(main)

if __name__ == "__main__":
    app()
