// What the NEON kernels share: quantize and store. Included by files with instruction set flags, so no STL, and
// everything is in an anonymous namespace: each file has its own copy, compiled with its own flags.
#pragma once

#include <arm_neon.h>
#include <string.h>

#include "kernel.h"

namespace bitlab::cpu {
namespace {

// Arrays of vectors stay in registers only where the loops over them are unrolled.
#define UNROLL _Pragma("GCC unroll 8")

constexpr int64_t kStep = 16;  // bytes of one load

template <Dtype dtype>
constexpr int64_t kItemSize = dtype == Dtype::kFloat32 ? 4 : 2;

template <Dtype dtype>
float32x4_t load_4(const char* x) {
  if constexpr (dtype == Dtype::kFloat32) {
    return vld1q_f32(reinterpret_cast<const float*>(x));
  } else {
    const uint16x4_t half = vld1_u16(reinterpret_cast<const uint16_t*>(x));
    if constexpr (dtype == Dtype::kFloat16) return vcvt_f32_f16(vreinterpret_f16_u16(half));
    return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
  }
}

template <Dtype dtype>
void store_4(char* y, float32x4_t value) {
  if constexpr (dtype == Dtype::kFloat32) {
    vst1q_f32(reinterpret_cast<float*>(y), value);
  } else if constexpr (dtype == Dtype::kFloat16) {
    vst1_u16(reinterpret_cast<uint16_t*>(y), vreinterpret_u16_f16(vcvt_f16_f32(value)));
  } else {
    // To nearest even: adding 0x7fff and the kept lowest bit carries into the upper half exactly when rounding up.
    const uint32x4_t bits = vreinterpretq_u32_f32(value);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t number = vceqq_f32(value, value);
    vst1_u16(reinterpret_cast<uint16_t*>(y), vshrn_n_u32(vbslq_u32(number, rounded, vdupq_n_u32(0x7fc00000)), 16));
  }
}

template <Dtype dtype>
uint32_t absmax_bits_of(const void* x, int64_t k) {
  const char* bytes = static_cast<const char*>(x);
  const uint32x4_t magnitude = vdupq_n_u32(0x7fffffff);
  uint32x4_t largest = vdupq_n_u32(0);
  int64_t i = 0;
  for (; i + 4 <= k; i += 4) {
    const uint32x4_t bits = vreinterpretq_u32_f32(load_4<dtype>(bytes + i * kItemSize<dtype>));
    largest = vmaxq_u32(largest, vandq_u32(bits, magnitude));
  }
  if (i < k) {
    char rest[4 * 4] = {};
    memcpy(rest, bytes + i * kItemSize<dtype>, static_cast<size_t>((k - i) * kItemSize<dtype>));
    largest = vmaxq_u32(largest, vandq_u32(vreinterpretq_u32_f32(load_4<dtype>(rest)), magnitude));
  }
  return vmaxvq_u32(largest);
}

// 64 activations as int8: plane j gets the values at 4i + j. Returns their sum.
template <Dtype dtype>
int32_t quantize_64(const char* x, float32x4_t inverse_scale, int8_t* x_q, int64_t plane) {
  int8_t in_order[64];
  int32x4_t sum = vdupq_n_s32(0);
  for (int part = 0; part < 4; ++part) {
    int32x4_t q[4];
    UNROLL for (int i = 0; i < 4; ++i) {
      const float32x4_t value = load_4<dtype>(x + (16 * part + 4 * i) * kItemSize<dtype>);
      q[i] = vcvtnq_s32_f32(vmulq_f32(value, inverse_scale));  // to nearest even
    }
    const int16x8_t low = vcombine_s16(vqmovn_s32(q[0]), vqmovn_s32(q[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(q[2]), vqmovn_s32(q[3]));
    const int8x16_t bytes = vcombine_s8(vqmovn_s16(low), vqmovn_s16(high));
    sum = vpadalq_s16(sum, vpaddlq_s8(bytes));
    vst1q_s8(in_order + 16 * part, bytes);
  }
  const int8x16x4_t planes = vld4q_s8(in_order);
  UNROLL for (int j = 0; j < 4; ++j)
    vst1q_s8(x_q + j * plane, planes.val[j]);
  return vaddvq_s32(sum);
}

template <Dtype dtype>
int32_t quantize_of(const void* x, int64_t k, float inverse_scale, int8_t* x_q, int64_t plane) {
  const char* bytes = static_cast<const char*>(x);
  const float32x4_t factor = vdupq_n_f32(inverse_scale);
  int32_t sum = 0;
  for (int64_t byte = 0, i = 0; byte < plane; byte += 16, i += 64) {
    if (i + 64 <= k) {
      sum += quantize_64<dtype>(bytes + i * kItemSize<dtype>, factor, x_q + byte, plane);
    } else {
      char rest[64 * 4] = {};
      if (i < k) memcpy(rest, bytes + i * kItemSize<dtype>, static_cast<size_t>((k - i) * kItemSize<dtype>));
      sum += quantize_64<dtype>(rest, factor, x_q + byte, plane);
    }
  }
  return sum;
}

template <Dtype dtype>
void store_of(const int32_t* acc, int64_t n, int32_t x_sum, float x_scale, const float* w_scale, int64_t w_scale_step,
              const float* bias, void* y) {
  const int32x4_t sum = vdupq_n_s32(x_sum);
  const float32x4_t token_scale = vdupq_n_f32(x_scale);
  const float32x4_t tensor_scale = vdupq_n_f32(x_scale * w_scale[0]);
  const auto four = [&](const int32_t* sums, const float* scales, const float* biases, char* out) {
    const float32x4_t product = vcvtq_f32_s32(vsubq_s32(vld1q_s32(sums), sum));
    float32x4_t value =
        vmulq_f32(product, w_scale_step == 0 ? tensor_scale : vmulq_f32(token_scale, vld1q_f32(scales)));
    if (biases != nullptr) value = vaddq_f32(value, vld1q_f32(biases));
    store_4<dtype>(out, value);
  };
  char* out = static_cast<char*>(y);
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    four(acc + i, w_scale + i * w_scale_step, bias == nullptr ? nullptr : bias + i, out + i * kItemSize<dtype>);
  }
  if (i < n) {
    const size_t rest = static_cast<size_t>(n - i);
    int32_t sums[4] = {};
    float scales[4] = {}, biases[4] = {};
    char result[4 * 4];
    memcpy(sums, acc + i, rest * sizeof(int32_t));
    if (w_scale_step != 0) memcpy(scales, w_scale + i, rest * sizeof(float));
    if (bias != nullptr) memcpy(biases, bias + i, rest * sizeof(float));
    four(sums, scales, bias == nullptr ? nullptr : biases, result);
    memcpy(out + i * kItemSize<dtype>, result, rest * kItemSize<dtype>);
  }
}

// 16 bytes of a weight row from `byte` on; zeros behind its end, which is never read across.
inline uint8x16_t load_row(const uint8_t* row, int64_t byte, int64_t row_bytes) {
  if (byte + kStep <= row_bytes) return vld1q_u8(row + byte);
  uint8_t rest[kStep] = {};
  memcpy(rest, row + byte, static_cast<size_t>(row_bytes - byte));
  return vld1q_u8(rest);
}

// Codes 0..2 of plane j.
template <int j>
int8x16_t codes_of(uint8x16_t bytes) {
  if constexpr (j == 0) return vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(3)));
  if constexpr (j == 1) return vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(bytes, 2), vdupq_n_u8(3)));
  if constexpr (j == 2) return vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(bytes, 4), vdupq_n_u8(3)));
  if constexpr (j == 3) return vreinterpretq_s8_u8(vshrq_n_u8(bytes, 6));
}

}  // namespace
}  // namespace bitlab::cpu

#include "by_dtype.h"
