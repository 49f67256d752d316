// Copies of 16 bytes from memory to shared memory that do not pass through registers (sm_80; elsewhere plain copies).
#pragma once

#include "tensor_core.cuh"

namespace bitlab::cuda {

// Stores 16 bytes, aligned.
__device__ __forceinline__ void store_16_bytes(uint32_t shared, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// Copies 16 bytes, aligned. L2 brings the whole line of 128 bytes: without that hint the halves of a line, which two
// warps copy, are two requests to memory.
__device__ __forceinline__ void copy_16_bytes(uint32_t shared, const void* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
#else
  store_16_bytes(shared, *static_cast<const uint4*>(from));
#endif
}

// Brings memory to L2 (sm_90; elsewhere nothing): of `bytes` from `begin` the whole pieces of 16. One thread is enough.
__device__ __forceinline__ void prefetch_to_l2(const uint8_t* begin, int64_t bytes) {
#if __CUDA_ARCH__ >= 900
  const uintptr_t address = reinterpret_cast<uintptr_t>(begin) & ~uintptr_t{15};
  const uint32_t whole = static_cast<uint32_t>(bytes) & ~15u;
  if (whole > 0) asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(whole) : "memory");
#endif
}

// Copies 4 bytes.
__device__ __forceinline__ void copy_4_bytes(uint32_t shared, const void* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(from) : "memory");
#else
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(shared), "r"(*static_cast<const uint32_t*>(from)) : "memory");
#endif
}

// Ends a group of copies of this thread; groups arrive in order.
__device__ __forceinline__ void end_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `kGroups` groups of this thread's copies are under way.
template <int kGroups>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

}  // namespace bitlab::cuda
