"""NEON with the dot products of Armv8.2 (csrc/cpu/kernel_neon_dotprod.cpp)."""

from bitcore.kernels.cpu import CompiledCpuKernel
from bitcore.kernels.registry import KernelRegistry


@KernelRegistry.register("neon_dotprod", priority=71)
class NeonDotprodKernel(CompiledCpuKernel):
    """For the Arm CPUs of phones, servers and Macs since 2018."""

    test_in_features = (63, 64, 65, 127, 129)  # around its step of 64
    test_out_features = (3, 4, 5)  # around its tile of 4 rows
