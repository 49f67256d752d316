"""KernelRegistry: every kernel, and the one decision which of them serves a request."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import entry_points
from inspect import isabstract
from threading import Lock
from typing import ClassVar, NamedTuple, TypeVar

import torch

from bitcore import extensions
from bitcore.checks import check_registration
from bitcore.config import BitQuantConfig
from bitcore.exceptions import DeviceError, KernelNotFoundError
from bitcore.kernels.base import BitKernelBase, Decision, KernelRequest

KernelClass = TypeVar("KernelClass", bound=type[BitKernelBase])

ENTRY_POINT_GROUP = "bitlab.kernels"
ENVIRONMENT_VARIABLE = "BITLAB_KERNEL"


class Verdict(NamedTuple):
    """A row of `KernelRegistry.explain`."""

    kernel: str
    priority: int | None  # None: of a plug-in that could not be loaded
    verdict: str  # "chosen" or "usable", with what was measured, or why not


_lock = Lock()
_forced: ContextVar[str | None] = ContextVar("bitlab_forced_kernel", default=None)


class KernelRegistry:
    """Every kernel by name. The decision on a request is a list of (kernel, reason), best first; choosing, explaining
    and failing are three readings of it.
    """

    _kernels: ClassVar[dict[str, type[BitKernelBase]]] = {}
    _failed_plugins: ClassVar[dict[str, str]] = {}
    _plugins_loaded: ClassVar[bool] = False

    # Another object whenever a decision may come out differently, None while a `use()` is open anywhere in the process:
    # a layer keeps its kernel as long as this is the object of its decision.
    decisions_of: ClassVar[object | None] = object()
    _open_overrides: ClassVar[int] = 0

    @classmethod
    def register(cls, name: str, *, priority: int = 50) -> Callable[[KernelClass], KernelClass]:
        """Class decorator. Kernels of higher priority are asked first: 0 reference, 10 portable, 50 a user's, 60-89 CPU
        instruction sets, 90 Triton, 100 CUDA. Running the same definition again (a notebook cell) replaces the class.

        Raises:
            ArgumentError: the name is taken by another class, or the class is not a BitKernelBase.
        """

        def decorator(kernel: KernelClass) -> KernelClass:
            check_registration("kernel", kernel, BitKernelBase, name, cls._kernels.get(name))
            kernel.name, kernel.priority = name, priority
            cls._kernels[name] = kernel
            cls._forget_decisions()
            return kernel

        return decorator

    @classmethod
    def decide(cls, request: KernelRequest) -> list[Decision]:
        """The verdict on every kernel, best first."""
        return [
            Decision(kernel, _why_not_here(kernel) or kernel.unsupported_reason(request)) for kernel in cls._ranked()
        ]

    @classmethod
    def resolve(cls, request: KernelRequest, forced: str | None = None) -> BitKernelBase:
        """The best kernel that can serve `request`.

        `forced`, else `use()`, else BITLAB_KERNEL names the only kernel to ask.

        Raises:
            KernelNotFoundError: none can serve, or the forced one cannot: it never gives way to another.
        """
        forced = forced or _forced.get() or os.environ.get(ENVIRONMENT_VARIABLE)
        decisions = cls.decide(request)
        if forced:
            cls.check_name(forced)
            decisions = [decision for decision in decisions if decision.kernel.name == forced]
        for decision in decisions:
            if decision.reason is None:
                if decision.kernel.name == "reference" and not forced and _compiled_missing(request.device_type):
                    extensions.warn_that_missing(request.device_type)
                return _kernel_of(decision.kernel, request.config)
        asked = f" (only kernel {forced!r} was asked)" if forced else ""
        raise KernelNotFoundError(
            f"no kernel can serve this layer{asked}.\n{_table(request, cls._verdicts(decisions, None))}\n"
            "  `python -m bitcore` prints what this machine has and which kernel each common config gets."
        )

    @classmethod
    def get_kernel_for_config(
        cls, config: BitQuantConfig, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> BitKernelBase:
        """The best kernel for layers of `config` on `device` with inputs of `dtype`.

        Raises:
            DeviceError: torch knows no such device.
            KernelNotFoundError: none can serve, or the forced one cannot.
        """
        return cls.resolve(KernelRequest(config, _device_type(device), dtype))

    @classmethod
    def get_kernel_by_name(cls, name: str, config: BitQuantConfig) -> BitKernelBase:
        """The kernel `name`. Raises KernelNotFoundError if it is unknown or cannot serve `config` here."""
        cls.check_name(name)
        device_types = cls._kernels[name].device_types
        device_type = "cpu" if device_types is None or "cpu" in device_types else min(device_types)
        return cls.resolve(KernelRequest(config, device_type, torch.float32), forced=name)

    @classmethod
    def list_available_kernels(cls) -> list[str]:
        """The names of the kernels that this machine can run, best first."""
        return [kernel.name for kernel in cls._ranked() if _why_not_here(kernel) is None]

    @classmethod
    def check_name(cls, name: str) -> None:
        """Raises KernelNotFoundError if no kernel has this name."""
        cls._load_plugins()
        if name not in cls._kernels:
            raise KernelNotFoundError(f"no kernel is named {name!r}; there are {', '.join(sorted(cls._kernels))}")

    @classmethod
    def explain(
        cls,
        config: BitQuantConfig,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        in_features: int | None = None,
        out_features: int | None = None,
    ) -> str:
        """A table: each kernel in priority order, chosen, usable, or why not."""
        request = KernelRequest(config, _device_type(device), dtype, in_features, out_features)
        return _table(request, cls.verdicts(request))

    @classmethod
    def verdicts(cls, request: KernelRequest) -> list[Verdict]:
        """The rows of `explain`: each kernel in priority order, then plug-ins that could not be loaded."""
        forced = _forced.get() or os.environ.get(ENVIRONMENT_VARIABLE)
        return cls._verdicts(cls.decide(request), forced)

    @classmethod
    @contextmanager
    def use(cls, name: str) -> Iterator[None]:
        """Forces one kernel, in this thread or task, also for layers that have decided before.

        Raises:
            KernelNotFoundError: no kernel has this name.
        """
        cls.check_name(name)
        token = _forced.set(name)
        with _lock:
            cls._open_overrides += 1
        cls._forget_decisions()
        try:
            yield
        finally:
            _forced.reset(token)
            with _lock:
                cls._open_overrides -= 1
            cls._forget_decisions()

    @classmethod
    def _forget_decisions(cls) -> None:
        with _lock:
            cls.decisions_of = None if cls._open_overrides else object()

    @classmethod
    def _ranked(cls) -> list[type[BitKernelBase]]:
        cls._load_plugins()
        return sorted(cls._kernels.values(), key=lambda kernel: (-kernel.priority, kernel.name))

    @classmethod
    def _verdicts(cls, decisions: list[Decision], forced: str | None) -> list[Verdict]:
        rows = []
        chosen = False
        for decision in decisions:
            kernel, verdict = decision.kernel, decision.reason
            if verdict is None:
                takes = not chosen and forced in (None, "", kernel.name)
                verdict, chosen = "chosen" if takes else "usable", chosen or takes
                if kernel.why_this_place:
                    verdict += f": {kernel.why_this_place}"
            rows.append(Verdict(kernel.name, kernel.priority, verdict))
        return rows + [Verdict(f"plugin {name}", None, f"failed: {why}") for name, why in cls._failed_plugins.items()]

    @classmethod
    def _load_plugins(cls) -> None:
        if cls._plugins_loaded:
            return
        cls._plugins_loaded = True
        for plugin in entry_points(group=ENTRY_POINT_GROUP):
            try:
                plugin.load()
            except Exception as error:  # somebody else's package: its failure becomes a row of the table, not ours
                cls._failed_plugins[plugin.name] = f"{type(error).__name__}: {error}"


def _device_type(device: str | torch.device) -> str:
    try:
        return torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise DeviceError("device", repr(device), "a torch.device or its name, such as cpu or cuda:0") from error


def _table(request: KernelRequest, verdicts: list[Verdict]) -> str:
    width = max((len(row.kernel) for row in verdicts), default=0)
    lines = [f"  asked for: {request}"]
    for name, priority, verdict in verdicts:
        lines.append(f"  {name:<{width}}  {'' if priority is None else priority:>3}  {verdict}")
    return "\n".join(lines)


def _why_not_here(kernel: type[BitKernelBase]) -> str | None:
    if isabstract(kernel):
        return f"{kernel.__qualname__} does not define linear"
    return kernel.unavailable_reason()


def _compiled_missing(device_type: str) -> bool:
    """Whether compiled kernels for the device were to be expected, and are not there."""
    if device_type == "cpu":
        return extensions.why_missing() is not None
    return device_type == "cuda" and torch.version.cuda is not None and extensions.why_cuda_missing() is not None


@cache
def _kernel_of(kernel: type[BitKernelBase], config: BitQuantConfig) -> BitKernelBase:
    """One object for all layers of a config: layers that share it can be computed together."""
    return kernel(config)
