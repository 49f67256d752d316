"""AVX-512 VNNI: 64 int8 products an instruction, 2-bit codes read in place (csrc/cpu/kernel_avx512_vnni.cpp)."""

from bitcore.kernels.cpu import CompiledCpuKernel
from bitcore.kernels.registry import KernelRegistry


@KernelRegistry.register("avx512_vnni", priority=80)
class Avx512VnniKernel(CompiledCpuKernel):
    """Bound by memory for few tokens, by vpdpbusd for many."""

    test_in_features = (252, 255, 256, 257, 512, 771)  # around its step of 256 weights
    test_out_features = (3, 4, 5, 127, 128, 129)  # around its tile of 4 rows and the driver's block of 128
