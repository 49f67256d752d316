// Copies of 16 bytes from memory to shared memory that do not pass through registers (sm_80; elsewhere plain copies).
#pragma once

#include "tensor_core.cuh"

namespace bitlab::cuda {

// Copies `from` (16-byte aligned), or zeros where `live` is false.
__device__ __forceinline__ void copy_16_bytes(uint32_t shared, const void* from, bool live = true) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(live ? 16 : 0) : "memory");
#else
  uint4 v = {0, 0, 0, 0};
  if (live) v = *static_cast<const uint4*>(from);
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
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
