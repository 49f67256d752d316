"""AVX2: 32 int8 products an instruction, sums widened before they saturate (csrc/cpu/kernel_avx2.cpp)."""

from bitcore.kernels.cpu import CompiledCpuKernel
from bitcore.kernels.registry import KernelRegistry


@KernelRegistry.register("avx2", priority=60)
class Avx2Kernel(CompiledCpuKernel):
    """For x86-64 CPUs without VNNI."""

    test_in_features = (
        127,
        128,
        129,
        512,
        513,
        1920,
        1921,
    )  # around its step of 128 and where sums are widened: 4, 12 and 15 steps
    test_out_features = (1, 2, 3)  # around its tile of 2 rows
