"""parameter_groups: weight decay on the weights that are multiplied, none on what scales and shifts."""

from typing import Any

from torch import nn

from bitcore.exceptions import ArgumentError


def parameter_groups(model: nn.Module, weight_decay: float = 0.1) -> list[dict[str, Any]]:
    """Two parameter groups for a torch optimizer, each Parameter that needs a gradient in one of them.

    Decayed are the masters of Bit layers and all others of two or more dimensions: dense weights, embeddings. Without
    decay are norms, biases and scales, which have at most one.

    Args:
        model: any module.
        weight_decay: of the first group (BitNet b1.58 trains with 0.1).

    Returns:
        [{"params": [...], "weight_decay": weight_decay}, {"params": [...], "weight_decay": 0.0}], in the model's order;
        a group that would be empty is left out.

    Raises:
        ArgumentError: `weight_decay` is negative, or no parameter needs a gradient.
    """
    if not weight_decay >= 0:
        raise ArgumentError("weight_decay", weight_decay, "0 or more")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ArgumentError("model", "without a Parameter that needs a gradient", "something to train")
    groups = [
        {"params": [parameter for parameter in trained if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
