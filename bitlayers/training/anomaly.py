"""detect_non_finite: stops training at the first NaN or Inf, and names the layer."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from bitcore.checks import check_finite
from bitcore.exceptions import NonFiniteError, QuantizationError
from bitlayers.nested import tensors


@contextmanager
def detect_non_finite(model: nn.Module, gradients: bool = True) -> Iterator[None]:
    """Inside the context, forward and backward passes of `model` raise at the first non-finite number.

    Looked at are, in the order in which they are made: the parameters and inputs of each layer when it is called, its
    outputs, and with `gradients` the gradients of its outputs and of its parameters. What is named is therefore where
    the number appears first; an input that is not finite comes from code between layers.

    For debugging: every look waits for the device. With a GradScaler pass gradients=False: it lets gradients overflow
    on purpose.

    Raises:
        NonFiniteError: (by the forward or backward pass) for example "the output of layers.3 is nan at [0, 2], expected
            finite".
    """
    with ExitStack() as stack:
        for name, module in model.named_modules():
            before = module.register_forward_pre_hook(partial(_look_before, name), with_kwargs=True)
            after = module.register_forward_hook(partial(_look_after, name or "the model", gradients))
            stack.callback(before.remove)
            stack.callback(after.remove)
        for name, parameter in model.named_parameters():
            if gradients and parameter.requires_grad:
                register: Callable[..., Any] = parameter.register_post_accumulate_grad_hook
                stack.callback(register(partial(_look_at_gradient, name)).remove)
        yield


def _look_before(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for parameter_name, parameter in module.named_parameters(prefix=name, recurse=False):
        _look(parameter_name, parameter)
    for tensor in tensors((args, kwargs)):
        _look(f"an input of {name or 'the model'}", tensor)


def _look_after(name: str, gradients: bool, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
    for tensor in tensors(output):
        _look(f"the output of {name}", tensor)
        if gradients and tensor.requires_grad:
            register: Callable[..., Any] = tensor.register_hook
            register(partial(_look, f"the gradient of the output of {name}"))


def _look_at_gradient(name: str, parameter: Tensor) -> None:
    assert parameter.grad is not None
    _look(f"the gradient of {name}", parameter.grad)


def _look(what: str, tensor: Tensor) -> None:
    try:
        check_finite(what, tensor.detach())
    except QuantizationError as error:
        raise NonFiniteError(error.argument, error.was, error.expected) from None
