// The arithmetic of RowNorm. The sum of squares is the same, to the bit, however a row is cut: four neighbours are
// added in float32, all else in float64, whose rounding is far below that of the sum in float32 at the end.
#pragma once

#include "activations.cuh"
#include "row_norm.h"

namespace bitlab::cuda {

template <Dtype kDtype>
__device__ __forceinline__ float rounded(float value) {
  if constexpr (kDtype == Dtype::kBFloat16) return __bfloat162float(__float2bfloat16_rn(value));
  if constexpr (kDtype == Dtype::kFloat16) return __half2float(__float2half_rn(value));
  return value;
}

template <Dtype kDtype>
__device__ __forceinline__ float activated(float x, RowSource source) {
  if (source == RowSource::kRelu2) {
    x = x < 0.0f ? 0.0f : x;  // NaN stays NaN
    return rounded<kDtype>(__fmul_rn(x, x));
  }
  if (source == RowSource::kSilu) return rounded<kDtype>(__fdiv_rn(x, 1.0f + expf(-x)));
  return rounded<kDtype>(x * 0.5f * (1.0f + erff(x * 0.70710678118654752440f)));
}

// In place: values = source(values, other).
template <Dtype kDtype, int kCount>
__device__ __forceinline__ void apply_source(RowSource source, const float (&other)[kCount], float (&values)[kCount]) {
  if (source == RowSource::kCopy) return;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (source == RowSource::kAdd) {
      values[i] = rounded<kDtype>(__fadd_rn(values[i], other[i]));
    } else {
      values[i] = rounded<kDtype>(__fmul_rn(activated<kDtype>(values[i], source), other[i]));
    }
  }
}

// The inverse of to_floats, of values that the dtype has.
template <Dtype kDtype, int kCount>
__device__ __forceinline__ void to_pairs(const float (&values)[kCount], uint32_t (&pairs)[kCount / 2]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    if constexpr (kDtype == Dtype::kBFloat16) {
      pairs[i] = __byte_perm(__float_as_uint(values[2 * i]), __float_as_uint(values[2 * i + 1]), 0x7632);
    } else {
      const __half2 pair = __floats2half2_rn(values[2 * i], values[2 * i + 1]);
      pairs[i] = *reinterpret_cast<const uint32_t*>(&pair);
    }
  }
}

template <int kCount>
__device__ __forceinline__ double square_sum(const float (&values)[kCount]) {
  static_assert(kCount % 4 == 0);
  double total = 0.0;
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    float sum = __fmul_rn(values[i], values[i]);
#pragma unroll
    for (int j = 1; j < 4; ++j) sum = __fmaf_rn(values[i + j], values[i + j], sum);
    total += static_cast<double>(sum);
  }
  return total;
}

__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
}

// Brings the weight nearer before it may be used; threads ask for 128 bytes each.
__device__ __forceinline__ void prefetch_weight(const RowNorm& norm) {
  const int64_t bytes = norm.n * (norm.dtype == Dtype::kFloat32 ? 4 : 2);
  for (int64_t at = threadIdx.x * int64_t{128}; norm.weight != nullptr && at < bytes; at += blockDim.x * int64_t{128})
    asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(norm.weight) + at));
}

// 1 / sqrt(mean + eps).
__device__ __forceinline__ float norm_scale(double square_sum, int64_t n, float eps) {
  return rsqrtf(__fadd_rn(__fdiv_rn(static_cast<float>(square_sum), static_cast<float>(n)), eps));
}

template <Dtype kDtype, int kCount>
__device__ __forceinline__ void normalize(float scale, const float (&weight)[kCount], float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = rounded<kDtype>(__fmul_rn(weight[i], __fmul_rn(scale, values[i])));
}

}  // namespace bitlab::cuda
