"""Filters for `convert`: which layers stay in floating point."""

from collections.abc import Callable

from torch import nn

from bitcore.exceptions import ArgumentError
from bitlayers.registry import layer_for


def stem_and_head(model: nn.Module, stem: int = 1, head: int = 1) -> Callable[[str, nn.Module], bool]:
    """Selects the first `stem` and the last `head` layers of `model` that `convert` could replace.

    First and last are in the order in which the model registers them (`named_modules`). Given to `convert` as
    `exclude`, alone or beside others, it keeps the layers next to the data in floating point, as most published
    low-bit networks do: `convert(model, exclude=(stem_and_head(model), "router"))`.

    Raises:
        ArgumentError: a number is negative, or `model` has no more layers than are to be kept.
    """
    if min(stem, head) < 0:
        raise ArgumentError("stem and head", f"{stem} and {head}", "0 or more")
    names = [name for name, module in model.named_modules() if layer_for(module) is not None]
    if len(names) <= stem + head:
        raise ArgumentError("model", f"with {len(names)} layers to convert", f"more than the {stem + head} to be kept")
    kept = {*names[:stem], *names[len(names) - head :]}
    return lambda name, module: name in kept
