"""QuantizationWarmup: quantization that grows from nothing to all during the first steps of training."""

import math
from collections.abc import Callable
from typing import Literal, TypedDict

from torch import nn

from bitcore.exceptions import ArgumentError
from bitlayers.base import BitLayer

Shape = Literal["linear", "sigmoid"]


class WarmupState(TypedDict):
    """What a checkpoint needs of a QuantizationWarmup."""

    step: int


class QuantizationWarmup:
    """Raises λ of every Bit layer of `model` from near 0 to 1 in `steps` calls of `step`.

    A layer in training computes with x + λ (quantize(x) - x) for its weights and activations, with straight-through
    gradients; fine-tuning of a pretrained dense model loses less that way. At λ = 1 it computes what it deploys. Eval
    and deployed layers always quantize in full, so validation during the warm-up tells what deploying now would give.

        linear    λ = n / steps
        sigmoid   λ = 1 / (1 + exp(-sharpness * (n / steps - 1/2)))

    and exactly 1 from n = steps on. λ is an ordinary attribute of the layers (`BitLayer.quantization_lambda`): nothing
    is added to their state dicts, every process of a distributed run steps its own, and torch.compile compiles three
    graphs in all: for the first λ, for any λ, and for λ = 1.

    Args:
        model: holds Bit layers. Those that are put in later are not driven.
        steps: calls of `step` until λ = 1; 0 starts there.
        shape: "linear" or "sigmoid".
        sharpness: of the sigmoid.

    Raises:
        ArgumentError: an argument is wrong, or there are no Bit layers.
    """

    def __init__(self, model: nn.Module, steps: int, shape: Shape = "linear", sharpness: float = 10.0) -> None:
        if steps < 0:
            raise ArgumentError("steps", steps, "0 or more")
        if shape not in _SHAPES:
            raise ArgumentError("shape", repr(shape), " or ".join(map(repr, _SHAPES)))
        if not 0 < sharpness < math.inf:
            raise ArgumentError("sharpness", sharpness, "a positive number")
        self.layers = [module for module in model.modules() if isinstance(module, BitLayer)]
        if not self.layers:
            raise ArgumentError("model", "without Bit layers", "a model with Bit layers; convert() makes them")
        self.steps = steps
        self.shape = shape
        self.sharpness = sharpness
        self._go_to(0)

    @property
    def quantization_lambda(self) -> float:
        """λ now, 0 to 1."""
        if self.steps_done >= self.steps:
            return 1.0
        return _SHAPES[self.shape](self.steps_done / self.steps, self.sharpness)

    def step(self) -> None:
        """To be called after each optimizer step."""
        self._go_to(self.steps_done + 1)

    def state_dict(self) -> WarmupState:
        return {"step": self.steps_done}

    def load_state_dict(self, state: WarmupState) -> None:
        """Continues from `state`: the layers get its λ."""
        self._go_to(state["step"])

    def _go_to(self, step: int) -> None:
        self.steps_done = step
        for layer in self.layers:
            layer.quantization_lambda = self.quantization_lambda


def _linear(progress: float, sharpness: float) -> float:
    return progress


def _sigmoid(progress: float, sharpness: float) -> float:
    return 1 / (1 + math.exp(-sharpness * (progress - 0.5)))


_SHAPES: dict[str, Callable[[float, float], float]] = {"linear": _linear, "sigmoid": _sigmoid}
