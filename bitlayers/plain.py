"""Which modules compute what their class says and nothing else, so that an operator over many may stand for them."""

from torch import nn
from torch.nn.modules import module as torch_module


def is_plain(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether `module` is a `cls` itself, in eval mode, without hooks or a forward of its own."""
    return type(module) is cls and not module.training and has_forward_of_class(module)


def has_forward_of_class(module: nn.Module) -> bool:
    """Whether calling `module` is its class's forward and nothing else: neither hooks nor a forward of its own."""
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def has_global_hooks() -> bool:
    """Whether PyTorch calls hooks for every module."""
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)
