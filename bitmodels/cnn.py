"""BitCNN: a residual network (arXiv 1512.03385) of BitConv2d layers."""

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ShapeError
from bitlayers import BitConv2d
from bitmodels.base import BitModelBase, BitModelConfig, Size
from bitmodels.registry import register_model


class BitCNNConfig(BitModelConfig):
    """Sizes of a BitCNN. The defaults are ResNet-18's for small images."""

    in_channels: Size = 3
    widths: tuple[Size, ...] = Field(
        default=(64, 128, 256, 512),
        min_length=1,
        description="channels of each stage; from the second on, stages halve the image",
    )
    blocks_per_stage: int = Field(default=2, ge=1, le=1000)
    out_channels: Size = Field(default=10, description="classes")
    full_precision_first: bool = Field(default=True, description="the first layer is an nn.Conv2d")


class BitResidualBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))); the shortcut is a 1x1 convolution where sizes change."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, quant_config: BitQuantConfig) -> None:
        super().__init__()

        def convolution(channels: int, kernel_size: int, stride: int) -> nn.Sequential:
            padding = kernel_size // 2
            layer = BitConv2d(
                channels, out_channels, kernel_size, stride, padding, bias=False, quant_config=quant_config
            )
            return nn.Sequential(layer, nn.BatchNorm2d(out_channels))

        self.first = convolution(in_channels, 3, stride)
        self.second = convolution(out_channels, 3, 1)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = convolution(in_channels, 1, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.second(F.relu(self.first(x))))


@register_model("cnn")
class BitCNNModel(BitModelBase):
    """Images [batch, in_channels, height, width] -> logits [batch, out_channels]. The head is an nn.Linear."""

    config_class = BitCNNConfig

    def __init__(self, config: BitCNNConfig, quant_config: BitQuantConfig | None = None) -> None:
        super().__init__(config, quant_config)
        first = (
            nn.Conv2d(config.in_channels, config.widths[0], 3, padding=1, bias=False)
            if config.full_precision_first
            else BitConv2d(
                config.in_channels, config.widths[0], 3, padding=1, bias=False, quant_config=self.quant_config
            )
        )
        self.stem = nn.Sequential(first, nn.BatchNorm2d(config.widths[0]), nn.ReLU())
        blocks = []
        channels = config.widths[0]
        for stage, width in enumerate(config.widths):
            for block in range(config.blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BitResidualBlock(channels, width, stride, self.quant_config))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, config.out_channels)

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] != self.config.in_channels:
            expected = f"[batch, {self.config.in_channels}, height, width]"
            raise ShapeError("images", f"of shape {list(images.shape)}", expected)
        logits: Tensor = self.head(self.blocks(self.stem(images)).mean((2, 3)))
        return logits
