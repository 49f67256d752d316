"""What modules take and give: tensors and plain values in tuples, lists, dicts and dataclasses."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

from torch import Tensor


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every leaf of `value` with its path, such as `[0].keys`, in a fixed order."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}[{key!r}]")
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}")
    else:
        yield path, value


def tensors(value: object) -> Iterator[Tensor]:
    """The tensors among the leaves of `value`."""
    for _, leaf in leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
