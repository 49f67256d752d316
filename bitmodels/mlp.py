"""BitMLP: a multi-layer perceptron of BitLinear layers."""

from pydantic import Field
from torch import Tensor, nn

from bitcore.config import BitQuantConfig
from bitlayers import BitLinear, RMSNorm
from bitmodels.base import BitModelBase, BitModelConfig, Size
from bitmodels.registry import register_model


class BitMLPConfig(BitModelConfig):
    """Sizes of a BitMLP."""

    n_layers: int = Field(default=3, ge=1, le=10_000, description="linear layers, the last one included")
    in_channels: Size = 256
    hidden_dim: Size = 128
    out_channels: Size = 10
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    norm: bool = Field(
        default=True, description="an RMSNorm in front of every hidden and the last layer (BitNet's recipe)"
    )
    full_precision_first: bool = Field(default=False, description="the first layer is an nn.Linear")
    full_precision_last: bool = Field(default=False, description="the last layer is an nn.Linear")


@register_model("mlp")
class BitMLPModel(BitModelBase):
    """x [..., in_channels] -> logits [..., out_channels]; ReLU and dropout between the layers."""

    config_class = BitMLPConfig

    def __init__(self, config: BitMLPConfig, quant_config: BitQuantConfig | None = None) -> None:
        super().__init__(config, quant_config)
        last = config.n_layers - 1
        layers: list[nn.Module] = []
        for index in range(config.n_layers):
            in_features = config.in_channels if index == 0 else config.hidden_dim
            out_features = config.out_channels if index == last else config.hidden_dim
            if config.norm and index > 0:
                layers.append(RMSNorm(in_features, eps=1e-5))
            full_precision = (index == 0 and config.full_precision_first) or (
                index == last and config.full_precision_last
            )
            if full_precision:
                layers.append(nn.Linear(in_features, out_features))
            else:
                layers.append(BitLinear(in_features, out_features, quant_config=self.quant_config))
            if index < last:
                layers += [nn.ReLU(), nn.Dropout(config.dropout)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits
