// The instructions of tensor cores and of the shared memory that feeds them.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace bitlab::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The value, which the compiler keeps from here on instead of computing it anew at each use.
template <typename T>
__device__ __forceinline__ T in_register(T value) {
  if constexpr (sizeof(T) == 8) {
    asm volatile("" : "+l"(value));
  } else {
    asm volatile("" : "+r"(value));
  }
  return value;
}

// Four core matrices of 8 columns x 16 bytes; lane L names row L % 8 of matrix L / 8 and gets word L % 4 of row L / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address));
}

// sums [16 rows, 8 columns] += codes u8 [16, 32] * activations s8 [32, 8], modulo 2**32.
__device__ __forceinline__ void multiply_add(int (&sums)[4], uint32_t row_half0, uint32_t row8_half0,
                                             uint32_t row_half1, uint32_t row8_half1, uint32_t column_half0,
                                             uint32_t column_half1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(row_half0), "r"(row8_half0), "r"(row_half1), "r"(row8_half1), "r"(column_half0), "r"(column_half1));
#else
  const auto eight = [](int& a, int& b, uint32_t row, uint32_t column) {
    asm("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(a), "+r"(b)
        : "r"(row), "r"(column));
  };
  eight(sums[0], sums[1], row_half0, column_half0);
  eight(sums[0], sums[1], row_half1, column_half1);
  eight(sums[2], sums[3], row8_half0, column_half0);
  eight(sums[2], sums[3], row8_half1, column_half1);
#endif
}

}  // namespace bitlab::cuda
