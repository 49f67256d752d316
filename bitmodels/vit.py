"""BitViT: a vision transformer (arXiv 2010.11929) of BitAttention and BitFeedForward blocks."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ShapeError
from bitlayers import BitAttention, BitConv2d, BitFeedForward
from bitmodels.base import BitModelBase, BitModelConfig, Size
from bitmodels.registry import register_model

INITIAL_STD = 0.02  # of position embeddings and class token


class BitViTConfig(BitModelConfig):
    """Sizes of a BitViT. The defaults are ViT-Tiny's."""

    image_size: int = Field(default=224, ge=1, le=2**14, description="height and width in pixels")
    patch_size: int = Field(default=16, ge=1, le=2**12, description="of the square patches, a divisor of image_size")
    in_channels: int = Field(default=3, ge=1, le=2**12)
    hidden_size: Size = 192
    intermediate_size: Size = 768
    num_layers: int = Field(default=12, ge=1, le=10_000)
    num_heads: Size = 3
    out_channels: Size = Field(default=1000, description="classes")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="of embeddings and of what blocks add")
    attention_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    sub_norm: bool = Field(default=False, description="RMSNorms inside the blocks (BitNet b1.58)")
    norm_eps: float = Field(default=1e-5, gt=0.0)
    pooling: Literal["class_token", "mean"] = "class_token"
    full_precision_first: bool = Field(default=True, description="patches are embedded by an nn.Conv2d")

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.image_size % self.patch_size != 0:
            raise ValueError(f"patch_size is {self.patch_size}, expected a divisor of image_size, {self.image_size}")
        if self.hidden_size % self.num_heads != 0:
            raise ValueError(f"num_heads is {self.num_heads}, expected a divisor of hidden_size, {self.hidden_size}")
        return self


class BitEncoderLayer(nn.Module):
    """x + attention(norm(x)), then the same with the MLP block; RMSNorms, as in BitNet."""

    def __init__(self, config: BitViTConfig, quant_config: BitQuantConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = BitAttention(
            config.hidden_size,
            config.num_heads,
            bias=True,
            sub_norm=config.sub_norm,
            norm_eps=config.norm_eps,
            dropout=config.attention_dropout,
            quant_config=quant_config,
        )
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = BitFeedForward(
            config.hidden_size,
            config.intermediate_size,
            "gelu",
            gated=False,
            bias=True,
            sub_norm=config.sub_norm,
            norm_eps=config.norm_eps,
            quant_config=quant_config,
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        y: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return y


@register_model("vit")
class BitViTModel(BitModelBase):
    """Images [batch, in_channels, image_size, image_size] -> logits [batch, out_channels]. The head is an nn.Linear."""

    config_class = BitViTConfig

    def __init__(self, config: BitViTConfig, quant_config: BitQuantConfig | None = None) -> None:
        super().__init__(config, quant_config)
        sizes = (config.in_channels, config.hidden_size, config.patch_size, config.patch_size)
        self.patch_embedding = (
            nn.Conv2d(*sizes) if config.full_precision_first else BitConv2d(*sizes, quant_config=self.quant_config)
        )
        has_class_token = config.pooling == "class_token"
        positions = (config.image_size // config.patch_size) ** 2 + has_class_token
        self.position_embedding = nn.Parameter(torch.empty(1, positions, config.hidden_size))
        self.class_token = nn.Parameter(torch.empty(1, 1, config.hidden_size)) if has_class_token else None
        for parameter in (self.position_embedding, self.class_token):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=INITIAL_STD)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.Sequential(*(BitEncoderLayer(config, self.quant_config) for _ in range(config.num_layers)))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.out_channels)

    def forward(self, images: Tensor) -> Tensor:
        expected = [self.config.in_channels, self.config.image_size, self.config.image_size]
        if images.dim() != 4 or list(images.shape[1:]) != expected:
            raise ShapeError("images", f"of shape {list(images.shape)}", f"[batch, {str(expected)[1:]}")
        x = self.patch_embedding(images).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        x = self.norm(self.layers(self.dropout(x + self.position_embedding)))
        logits: Tensor = self.head(x.mean(1) if self.class_token is None else x[:, 0])
        return logits
