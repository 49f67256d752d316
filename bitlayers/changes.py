"""CountsChanges: for who holds what was made of layers, and has to know whether they still are what they were."""

from typing import Any, ClassVar

from torch import Tensor, nn


class CountsChanges:
    """A mixin of modules: counts, over all of them, parameters, buffers and modules that are put into one."""

    changes: ClassVar[int] = 0

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if value is None or isinstance(value, (Tensor, nn.Module)):
            CountsChanges.changes += 1
