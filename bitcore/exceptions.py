"""Every exception that BitLab raises on bad input, each with the sentence it makes.

A bad argument is named, with what it was and what was expected. Each class is also the built-in exception that a
PyTorch user would catch (ValueError, TypeError, RuntimeError). A wrong field of a pydantic model raises `ConfigError`,
which is pydantic's own ValidationError under this project's name.
"""

from pydantic import ValidationError as ConfigError

__all__ = [
    "ArgumentError",
    "BitLabError",
    "CheckpointError",
    "ConfigError",
    "DependencyError",
    "DeployMismatchError",
    "DeviceError",
    "DtypeError",
    "ExtensionWarning",
    "KernelNotFoundError",
    "LayerStateError",
    "ModelNotFoundError",
    "NonFiniteError",
    "PrecisionWarning",
    "QuantizationError",
    "ShapeError",
    "UnconvertedWarning",
]


class BitLabError(Exception):
    """Base of every exception of this project."""


class ArgumentError(BitLabError, ValueError):
    """An argument has a wrong value: `argument` is `was`, expected `expected`."""

    def __init__(self, argument: str, was: object, expected: str) -> None:
        super().__init__(argument, was, expected)
        self.argument = argument
        self.was = was
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.argument} is {self.was}, expected {self.expected}"


class ShapeError(ArgumentError):
    """A tensor has a wrong shape or a size is out of range."""


class DtypeError(ArgumentError, TypeError):
    """A tensor has a wrong dtype."""


class DeviceError(ArgumentError, RuntimeError):
    """A tensor is on a wrong device."""


class QuantizationError(ArgumentError):
    """Values cannot be quantized, packed or unpacked: non-finite weights, a code that no weight has."""


class KernelNotFoundError(BitLabError, RuntimeError):
    """No kernel has the name that was asked for, or none can serve; the message lists them with their reasons."""


class NonFiniteError(ArgumentError, ArithmeticError):
    """A NaN or an Inf where numbers were made: `argument` names a layer's input, output, parameter or gradient in
    training, or the logits of a model that is to generate.
    """


class DeployMismatchError(BitLabError, AssertionError):
    """A deployed model does not give what it was evaluated with. `layer` is the first one that differs, or None."""

    def __init__(self, message: str, layer: str | None = None) -> None:
        super().__init__(message, layer)
        self.message = message
        self.layer = layer

    def __str__(self) -> str:
        return self.message


class LayerStateError(BitLabError, RuntimeError):
    """A layer is in the wrong state for a call: deployed twice, trained after deploy."""


class CheckpointError(BitLabError, RuntimeError):
    """A checkpoint is damaged, or lacks what the model needs. Nothing has been loaded."""


class DependencyError(BitLabError, ImportError):
    """An optional package is needed and is not installed; the message says which, what for, and how to get it."""


class ModelNotFoundError(BitLabError, ValueError):
    """No model has the name that was asked for; the message lists those that exist."""


class PrecisionWarning(UserWarning):
    """A dtype is likely to overflow or to lose what training needs."""


class UnconvertedWarning(UserWarning):
    """`convert` left weights in floating point that look as if they should have been quantized."""


class ExtensionWarning(UserWarning):
    """The compiled kernels are missing, so the PyTorch reference kernel serves."""
