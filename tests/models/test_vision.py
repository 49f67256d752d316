"""BitViT and BitCNN: shapes, their life, bad input."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitcore import BitQuantConfig
from bitcore.exceptions import ConfigError, ShapeError
from bitlayers import BitConv2d, BitLinear, assert_deploy_equal
from bitmodels import AutoBitModel, BitModelBase, BitModelConfig
from bitmodels.cnn import BitCNNConfig
from bitmodels.vit import BitViTConfig

VIT = {
    "image_size": 12,
    "patch_size": 4,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_layers": 2,
    "num_heads": 2,
    "out_channels": 5,
}
CONFIGS = [
    BitViTConfig(**VIT),
    BitViTConfig(**VIT, pooling="mean", sub_norm=True, dropout=0.1, full_precision_first=False),
    BitCNNConfig(widths=(8, 12), blocks_per_stage=1, out_channels=5),
    BitCNNConfig(widths=(6,), in_channels=3, blocks_per_stage=2, out_channels=5, full_precision_first=False),
]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)


def made(config: BitModelConfig) -> tuple[BitModelBase, Tensor]:
    return AutoBitModel.from_config(config), torch.randn(3, 3, 12, 12)


@every_config
def test_trains_deploys_and_is_saved(config: BitModelConfig, tmp_path: Path) -> None:
    model, images = made(config)
    logits = model(images)
    assert logits.shape == (3, 5)
    F.cross_entropy(logits, torch.tensor([0, 1, 4])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert_deploy_equal(model, images)
    expected = model.eval()(images)
    model.deploy().save_pretrained(tmp_path)
    loaded = AutoBitModel.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(loaded(images), expected)


@every_config
def test_all_but_the_ends_is_quantized(config: BitModelConfig) -> None:
    quant_config = BitQuantConfig.weight_only()
    model = AutoBitModel.from_config(config, quant_config)
    dense = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not isinstance(module, (BitLinear, BitConv2d))
    ]
    first = ["stem.0"] if isinstance(config, BitCNNConfig) else ["patch_embedding"]
    assert dense == (first if config.full_precision_first else []) + ["head"]
    assert all(
        module.quant_config == quant_config for module in model.modules() if isinstance(module, (BitLinear, BitConv2d))
    )


@torch.no_grad()
def test_images_of_a_batch_do_not_mix() -> None:
    for config in CONFIGS:
        model, images = made(config)
        model.deploy()
        expected = model(images)[1:2]
        assert (model(images[1:2]) - expected).norm() < 0.1 * expected.norm()  # an int8 value may turn


def test_a_cnn_takes_any_image_size() -> None:
    model = AutoBitModel.from_config(CONFIGS[2]).deploy()
    assert model(torch.randn(2, 3, 7, 9)).shape == (2, 5)


def test_patches_are_where_they_are() -> None:
    """Without positions a ViT could not tell."""
    model, images = made(CONFIGS[1])
    model.eval()
    flipped = images.unflatten(2, (3, 4)).flip(2).flatten(2, 3)
    assert not torch.allclose(model(images), model(flipped), atol=1e-6)


@pytest.mark.parametrize("images", [(3, 12, 12), (2, 4, 12, 12)], ids=str)
@every_config
def test_wrong_images_are_refused(config: BitModelConfig, images: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"images is of shape .*, expected \[batch, 3, "):
        AutoBitModel.from_config(config)(torch.randn(images))


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="patch_size is 5, expected a divisor of image_size, 12"):
        BitViTConfig(**{**VIT, "patch_size": 5})
    with pytest.raises(ConfigError, match="num_heads is 5, expected a divisor of hidden_size, 24"):
        BitViTConfig(**{**VIT, "num_heads": 5})
    with pytest.raises(ConfigError, match=r"(?s)widths.1.*greater than or equal to 1"):
        BitCNNConfig(widths=(4, 0))
    with pytest.raises(ShapeError, match=r"images is of shape \[1, 3, 16, 16\]"):
        AutoBitModel.from_config(CONFIGS[0])(torch.randn(1, 3, 16, 16))
