"""What is checked in many places: configs, classes to register, values of tensors that can be looked at."""

import torch
from torch import Tensor

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, QuantizationError


def config_or_default(quant_config: BitQuantConfig | None) -> BitQuantConfig:
    """`quant_config`, or BitNet b1.58 if it is None. Raises ArgumentError for anything else."""
    if quant_config is None:
        return BitQuantConfig()
    check_config(quant_config)
    return quant_config


def check_config(quant_config: BitQuantConfig) -> None:
    """Raises ArgumentError for what is no BitQuantConfig, such as a dict or the name of one."""
    if not isinstance(quant_config, BitQuantConfig):
        raise ArgumentError("quant_config", repr(quant_config), "a BitQuantConfig")


def check_registration(argument: str, candidate: object, base: type, name: str, taken: type | None) -> None:
    """Checks the class that is to be registered under `name`.

    Running the same definition again (a notebook cell) makes another class that takes the place of the first.

    Raises:
        ArgumentError: `candidate`, which the decorator calls `argument`, is no subclass of `base`, the name is none, or
            another class, `taken`, has it.
    """
    if not isinstance(name, str) or not name:
        raise ArgumentError("name", repr(name), "a string")
    if not (isinstance(candidate, type) and issubclass(candidate, base)):
        raise ArgumentError(argument, candidate, f"a subclass of {base.__name__}")
    if taken is None or (taken.__module__, taken.__qualname__) == (candidate.__module__, candidate.__qualname__):
        return
    raise ArgumentError("name", repr(name), f"another name: it is taken by {taken.__module__}.{taken.__qualname__}")


def can_look_at(tensor: Tensor) -> bool:
    """Whether the values of `tensor` can be checked: not on the meta device, not while a graph is traced."""
    return tensor.device.type != "meta" and not torch.compiler.is_compiling()


def check_finite(argument: str, tensor: Tensor) -> None:
    """Raises QuantizationError with the place of the first NaN or Inf in `tensor`."""
    if can_look_at(tensor):
        refuse(argument, tensor, ~tensor.isfinite(), "finite")


def check_positive(argument: str, tensor: Tensor) -> None:
    """Raises QuantizationError with the place of the first value in `tensor` that is not positive and finite."""
    if can_look_at(tensor):
        refuse(argument, tensor, ~(tensor.isfinite() & (tensor > 0)), "positive and finite")


def refuse(argument: str, tensor: Tensor, bad: Tensor, expected: str) -> None:
    """Raises QuantizationError with the place of the first value in `tensor` that is `bad`, a bool tensor like it."""
    if bool(bad.any()):
        place = [int(index) for index in bad.nonzero()[0]]
        raise QuantizationError(argument, f"{tensor[tuple(place)].item()} at {place}", expected)
