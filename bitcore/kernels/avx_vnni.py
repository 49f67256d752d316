"""AVX-VNNI: 32 int8 products an instruction, for CPUs with VNNI but no AVX-512 (csrc/cpu/kernel_avx_vnni.cpp)."""

from bitcore.kernels.cpu import CompiledCpuKernel
from bitcore.kernels.registry import KernelRegistry


@KernelRegistry.register("avx_vnni", priority=70)
class AvxVnniKernel(CompiledCpuKernel):
    """For the x86-64 CPUs of laptops and desktops since 2021."""

    test_in_features = (127, 128, 129, 255, 257)  # around its step of 128
    test_out_features = (2, 3, 4, 5, 7, 8, 9)  # around its tiles of 2 and 4 rows and its store of 8
