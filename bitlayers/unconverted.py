"""unconverted_weights: what looks like a weight, and has no Bit layer."""

import re
from collections import Counter
from collections.abc import Callable

from torch import nn

from bitlayers.base import BitLayer
from bitlayers.registry import layer_for

LAYER_NUMBER = r"(?<![^.])\d+(?=\.)"


def unconverted_weights(model: nn.Module, is_chosen: Callable[[str, nn.Module], bool]) -> list[str]:
    """The weights of the model's own kinds of modules, with shapes; those that differ in layer numbers alone once.

    A 2-d `weight` is a matrix, and any 3-d Parameter a stack of them, such as the fused experts of a mixture. Those of
    torch.nn's modules (convolutions, say) are neither, nor are position embeddings [1, ...], nor is what is tied to a
    weight elsewhere.

    Args:
        is_chosen: of (qualified name, module): the modules to look at.
    """
    owners = Counter(parameter for module in model.modules() for parameter in module.parameters(recurse=False))
    found: dict[tuple[str, str], list[str]] = {}
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn") or isinstance(module, BitLayer) or layer_for(module):
            continue
        for leaf, parameter in module.named_parameters(name, recurse=False):
            is_weight = parameter.dim() == 3 or (parameter.dim() == 2 and leaf.endswith("weight"))
            if is_weight and min(parameter.shape[:2]) > 1 and owners[parameter] == 1 and is_chosen(name, module):
                kind = f"{list(parameter.shape)} ({type(module).__name__})"
                found.setdefault((re.sub(LAYER_NUMBER, "*", leaf), kind), []).append(leaf)
    return [f"{names[0] if len(names) == 1 else pattern} {kind}" for (pattern, kind), names in found.items()]
