"""Kernels: how this machine computes a layer. Every module here is imported, so a new file is a new kernel."""

from importlib import import_module
from pkgutil import iter_modules

from bitcore.kernels.base import BitKernelBase, Decision, KernelRequest
from bitcore.kernels.registry import KernelRegistry

__all__ = ["BitKernelBase", "Decision", "KernelRegistry", "KernelRequest"]

for _module in iter_modules(__path__):
    if _module.name != "bindings":
        import_module(f"{__name__}.{_module.name}")
