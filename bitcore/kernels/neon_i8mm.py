"""NEON with the int8 matrix products of Armv8.6 (csrc/cpu/kernel_neon_i8mm.cpp)."""

from bitcore.kernels.cpu import CompiledCpuKernel
from bitcore.kernels.registry import KernelRegistry


@KernelRegistry.register("neon_i8mm", priority=72)
class NeonI8mmKernel(CompiledCpuKernel):
    """For the Arm CPUs of servers since Neoverse V1, and Macs since M2."""

    test_in_features = (63, 64, 65, 127, 129)  # around its step of 64
    test_out_features = (3, 4, 5)  # around its tile of 4 rows
