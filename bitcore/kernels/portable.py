"""Portable C++: no intrinsics, any CPU (csrc/cpu/kernel_portable.cpp)."""

from bitcore.kernels.cpu import CompiledCpuKernel
from bitcore.kernels.registry import KernelRegistry


@KernelRegistry.register("portable", priority=10)
class PortableKernel(CompiledCpuKernel):
    """Plain loops, vectorized by the compiler with the instructions that every CPU of the architecture has."""

    faster_than_dense = False
