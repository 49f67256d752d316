"""Selection: modules chosen by their names, as `convert` takes them."""

from collections.abc import Callable, Collection
from fnmatch import fnmatchcase

from torch import nn

Filter = str | Callable[[str, nn.Module], bool]
Selection = Filter | Collection[Filter]


def is_chosen(name: str, module: nn.Module, include: Selection | None, exclude: Selection | None) -> bool:
    """Whether `include` (None: everything) has the module and `exclude` has not."""
    return (include is None or matches(name, module, include)) and not matches(name, module, exclude or ())


def matches(name: str, module: nn.Module, selection: Selection) -> bool:
    """Whether one of `selection` is the module, a part of its name, or a module around it."""
    if callable(selection):
        return selection(name, module)
    if not isinstance(selection, str):
        return any(matches(name, module, item) for item in selection)
    parts = name.split(".")
    around = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatchcase(candidate, selection) for candidate in (*around, *parts))
