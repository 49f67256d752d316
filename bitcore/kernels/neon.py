"""NEON, the instructions that every 64-bit Arm CPU has (csrc/cpu/kernel_neon.cpp)."""

from bitcore.kernels.cpu import CompiledCpuKernel
from bitcore.kernels.registry import KernelRegistry


@KernelRegistry.register("neon", priority=61)
class NeonKernel(CompiledCpuKernel):
    """For Arm CPUs without dot products."""

    test_in_features = (63, 64, 65, 960, 961)  # around its step of 64 and where it widens: 15 steps
    test_out_features = (2, 3, 4, 5)  # around its tile of 2 rows and its store of 4
