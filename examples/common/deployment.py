"""From a trained model to files and back, with every bit of its logits kept."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from bitlayers import assert_deploy_equal, deploy
from bitmodels import AutoBitModel, BitModelBase
from common.training import device_of


def deploy_and_reload(model: nn.Module, inputs: Tensor, reload: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Deploys `model` and returns what `reload` makes of it: writes it to disk, and reads it from there.

    Raises:
        AssertionError: the logits of `inputs` are not those of evaluation, bit for bit.
    """
    device = device_of(model)
    inputs = inputs.to(device)
    assert_deploy_equal(model, inputs)
    with torch.inference_mode():
        evaluated = model.eval()(inputs)
        loaded = reload(deploy(model)).to(device)
        assert torch.equal(loaded(inputs), evaluated), "the logits differ after a save and a load"
    return loaded


def through_folder(folder: Path) -> Callable[[nn.Module], nn.Module]:
    """Saves a BitModelBase into `folder` (config.json, model.safetensors), and loads it by what is there alone."""

    def reload(model: nn.Module) -> nn.Module:
        assert isinstance(model, BitModelBase)
        model.save_pretrained(folder)
        return AutoBitModel.from_pretrained(folder)

    return reload
