"""Building a model without memory and without work, for tensors that come from a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Modules are made on the meta device, and nothing is drawn at random: there, that would only import a compiler."""
    with torch.device("meta"), _NothingAtRandom():
        yield


class _NothingAtRandom(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", None) in ("normal_", "uniform_"):  # torch.nn.init's, and the tensor's own
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
