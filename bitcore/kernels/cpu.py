"""Base of the compiled CPU kernels (csrc/cpu)."""

import os
from functools import cache
from typing import ClassVar

from bitcore import extensions
from bitcore.config import BitQuantConfig
from bitcore.exceptions import KernelNotFoundError
from bitcore.kernels.compiled import CompiledKernel
from bitcore.kernels.cpu_training import CpuTrainingOperators
from bitcore.kernels.self_test import failure_of
from bitcore.kernels.training import TrainingOperators
from bitcore.packing import WEIGHTS_PER_BYTE

ISA_VARIABLE = "BITLAB_CPU_ISA"  # names the only compiled CPU kernel that may serve


class CompiledCpuKernel(CompiledKernel):
    """A row of the kernel table in csrc/cpu/dispatch.cpp, found by its name."""

    device_types = frozenset({"cpu"})
    faster_than_dense: ClassVar[bool] = True  # a batch multiplied in int8 than one in floating point

    @classmethod
    def _index(cls) -> int:
        return extensions.cpu_kernel_names().index(cls.name)

    def __init__(self, config: BitQuantConfig) -> None:
        super().__init__(config)
        trains = self.faster_than_dense and TrainingOperators.serve(config)
        self._training_operators = CpuTrainingOperators(config, self._index()) if trains else None

    def training_operators(self) -> TrainingOperators | None:
        return self._training_operators

    @classmethod
    def unavailable_reason(cls) -> str | None:
        return extensions.why_missing() or _why_not_wanted(cls.name) or _why_not_here(cls.name)

    @classmethod
    def _group_reason(cls, storage_format: str, group_size: int) -> str | None:
        per_byte = WEIGHTS_PER_BYTE[storage_format]
        if group_size % per_byte == 0:
            return None
        return f"group_size is {group_size}, serves multiples of {per_byte}, the weights of a byte"


def _why_not_wanted(name: str) -> str | None:
    wanted = os.environ.get(ISA_VARIABLE)
    if not wanted or wanted == name:
        return None
    usable = [built for built in extensions.cpu_kernel_names() if _why_not_here(built) is None]
    if wanted not in usable:
        raise KernelNotFoundError(f"{ISA_VARIABLE} is {wanted!r}, expected one of {', '.join(usable)} on this CPU")
    return f"{ISA_VARIABLE} is {wanted}"


@cache
def _why_not_here(name: str) -> str | None:
    built = extensions.cpu_kernel_names()
    if name not in built:
        reasons = extensions.build_report().get("skipped")
        reason = reasons.get(name) if isinstance(reasons, dict) else None
        return f"not built: {reason or 'this build was made without it'}"
    native = extensions.cpu_module()
    missing = native.missing_features(built.index(name)) if native is not None else []
    if missing:
        return f"this CPU lacks {', '.join(missing)}"
    failure = failure_of(name, built.index(name))
    return None if failure is None else f"its self-test failed: {failure}"
