// What the kernels use of CUDA's language, runtime and intrinsics.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <type_traits>

#include "../machine.h"
#include "../ptx.h"
#include "vectors.h"

#define __CUDACC__
#define __CUDA_ARCH__ 900
#define __CUDA_ARCH_FEAT_SM90_ALL
#define CUDART_VERSION 13000
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorNotSupported };
using cudaStream_t = void*;

enum { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaSharedmemCarveoutMaxShared };
enum cudaLaunchAttributeID {
  cudaLaunchAttributeProgrammaticStreamSerialization,
  cudaLaunchAttributePreferredSharedMemoryCarveout,
  cudaLaunchAttributeClusterDimension,
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed, sharedMemCarveout;
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int) {
  emulator::gpu.has_context = true;
  return cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void*, int, int) { return cudaSuccess; }

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

template <typename... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Parameters... arguments) {
  emulator::gpu.has_context = true;
  if (config->dynamicSmemBytes > emulator::gpu.shared_memory) return cudaErrorInvalidValue;
  int cluster = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i)
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension)
      cluster = static_cast<int>(config->attrs[i].val.clusterDim.z);
  emulator::run(config->gridDim, config->blockDim, cluster, config->dynamicSmemBytes, [&] { kernel(arguments...); });
  return cudaSuccess;
}

template <typename A, typename B>
std::common_type_t<A, B> min(A a, B b) {
  return static_cast<std::common_type_t<A, B>>(a) < static_cast<std::common_type_t<A, B>>(b) ? a : b;
}
template <typename A, typename B>
std::common_type_t<A, B> max(A a, B b) {
  return static_cast<std::common_type_t<A, B>>(a) > static_cast<std::common_type_t<A, B>>(b) ? a : b;
}

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float rsqrtf(float a) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(a))); }
inline int __float2int_rn(float a) { return static_cast<int>(std::nearbyint(a)); }
inline uint32_t __float_as_uint(float a) { return std::bit_cast<uint32_t>(a); }
inline float __uint_as_float(uint32_t a) { return std::bit_cast<float>(a); }

inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (shift & 31));
}

inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> 4 * i & 15;
    uint32_t byte = bytes >> 8 * (nibble & 7) & 255;
    if (nibble & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * i;
  }
  return result;
}

inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
  return sum;
}

inline uint32_t __vmaxu2(uint32_t a, uint32_t b) {
  return max(a & 0xffff0000u, b & 0xffff0000u) | max(a & 0xffffu, b & 0xffffu);
}

template <typename Value>
Value __ldg(const Value* from) {
  return *from;
}
template <typename Value>
Value __ldcg(const Value* from) {
  return *from;
}
template <typename Value>
void __stwb(Value* to, Value value) {
  *to = value;
}
template <typename Value>
Value atomicAdd(Value* to, Value value) {
  const Value before = *to;
  *to += value;
  return before;
}
template <typename Value>
Value atomicMax(Value* to, Value value) {
  const Value before = *to;
  *to = max(before, value);
  return before;
}

inline void __threadfence() {}
inline void __syncthreads() { emulator::synchronize_at(0, 0); }
inline void __syncwarp() { emulator::exchange(0); }
template <typename Value>
Value __shfl_xor_sync(uint32_t, Value value, int other) {
  return emulator::exchange(value)[threadIdx.x % emulator::kLanes ^ static_cast<uint32_t>(other)];
}
inline int __reduce_add_sync(uint32_t, int value) {
  const auto all = emulator::exchange(value);
  return std::accumulate(all.begin(), all.end(), 0);
}
inline uint32_t __reduce_max_sync(uint32_t, uint32_t value) {
  const auto all = emulator::exchange(value);
  return *std::max_element(all.begin(), all.end());
}
inline size_t __cvta_generic_to_shared(const void* pointer) { return emulator::address_of_shared(pointer); }
