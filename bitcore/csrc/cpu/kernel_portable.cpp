// Portable C++: no intrinsics, any CPU, compiled with the baseline flags. The loops are written so that a compiler
// vectorizes them.
//
// One step takes up to 256 bytes of a weight row and one plane: code j of each byte, (w >> 2j) & 3, is widened to int16
// once and multiplied with byte i of plane j of every token. Bytes per weight: 1/4, plus 2 in L1.
// Instructions per 256 weights and token with SSE2: 16 loads, 64 to widen x_q, 32 pmaddwd, 32 paddd.
#include <math.h>

#include "float_formats.h"
#include "kernel.h"

namespace bitlab::cpu {
namespace {

constexpr int64_t kChunk = 256;  // bytes of a row that are decoded together

template <Dtype dtype>
float load(const void* x, int64_t index) {
  if constexpr (dtype == Dtype::kFloat32) {
    return static_cast<const float*>(x)[index];
  } else if constexpr (dtype == Dtype::kBFloat16) {
    return from_bfloat16(static_cast<const uint16_t*>(x)[index]);
  } else {
    return from_float16(static_cast<const uint16_t*>(x)[index]);
  }
}

template <Dtype dtype>
uint32_t absmax_bits_of(const void* x, int64_t k) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < k; ++i) {
    const uint32_t magnitude = bits_of(load<dtype>(x, i)) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

template <Dtype dtype>
int32_t quantize_of(const void* x, int64_t k, float inverse_scale, int8_t* x_q, int64_t plane) {
  memset(x_q, 0, static_cast<size_t>(4 * plane));
  int32_t sum = 0;
  for (int64_t i = 0; i < k; ++i) {
    const float rounded = rintf(load<dtype>(x, i) * inverse_scale);  // half to even, the default rounding mode
    const float clamped = rounded < -128.0f ? -128.0f : rounded > 127.0f ? 127.0f : rounded;
    const int8_t q = static_cast<int8_t>(clamped);
    x_q[i % 4 * plane + i / 4] = q;
    sum += q;
  }
  return sum;
}

// Products of int16 summed in int32: compilers know this loop (pmaddwd, smlal).
int32_t dot(const int16_t* codes, const int8_t* x, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<int32_t>(codes[i]) * static_cast<int16_t>(x[i]);
  return sum;
}

void matmul(const int8_t* x_q, int64_t m, int64_t plane, const uint8_t* w, int64_t n, int64_t row_bytes, int32_t* acc,
            int64_t acc_stride) {
  int16_t codes[kChunk];
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t t = 0; t < m; ++t) acc[t * acc_stride + row] = 0;
    for (int64_t begin = 0; begin < row_bytes; begin += kChunk) {
      const uint8_t* bytes = w + row * row_bytes + begin;
      const int64_t count = row_bytes - begin < kChunk ? row_bytes - begin : kChunk;
      for (int j = 0; j < 4; ++j) {
        for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<int16_t>(bytes[i] >> 2 * j & 3);
        for (int64_t t = 0; t < m; ++t) {
          acc[t * acc_stride + row] += dot(codes, x_q + (4 * t + j) * plane + begin, count);
        }
      }
    }
  }
}

template <Dtype dtype>
void store_of(const int32_t* acc, int64_t n, int32_t x_sum, float x_scale, const float* w_scale, int64_t w_scale_step,
              const float* bias, void* y) {
  for (int64_t i = 0; i < n; ++i) {
    // The difference may pass 2**31 on its way; as unsigned numbers it comes out right.
    const int32_t product = static_cast<int32_t>(static_cast<uint32_t>(acc[i]) - static_cast<uint32_t>(x_sum));
    float value = static_cast<float>(product) * (x_scale * w_scale[i * w_scale_step]);
    if (bias != nullptr) value += bias[i];
    if constexpr (dtype == Dtype::kFloat32) {
      static_cast<float*>(y)[i] = value;
    } else {
      static_cast<uint16_t*>(y)[i] = dtype == Dtype::kBFloat16 ? to_bfloat16(value) : to_float16(value);
    }
  }
}

}  // namespace
}  // namespace bitlab::cpu

#include "by_dtype.h"

namespace bitlab::cpu {

constinit const Kernel kPortable{"portable", 0, 8, absmax_bits, quantize, matmul, store};

}  // namespace bitlab::cpu
