// Portable C++: no intrinsics, any CPU, compiled with the baseline flags. The loops are written so that a compiler
// vectorizes them.
//
// One step takes one byte of a weight row, 4 weights: code j, (w >> 2j) & 3, meets byte i of plane j of x_q. Products
// are summed in int32. Instructions per 256 weights with SSE2: about 210 (shift, mask, widen, pmaddwd).
#include <math.h>

#include "float_formats.h"
#include "kernel.h"

namespace bitlab::cpu {
namespace {

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

int32_t dot(const int8_t* x_q, int64_t plane, const uint8_t* w, int64_t row_bytes) {
  int32_t sum = 0;
  for (int j = 0; j < 4; ++j) {
    const int8_t* x_plane = x_q + j * plane;
    for (int64_t i = 0; i < row_bytes; ++i) {
      sum += static_cast<int16_t>(static_cast<int16_t>(w[i] >> 2 * j & 3) * static_cast<int16_t>(x_plane[i]));
    }
  }
  return sum;
}

void matmul(const int8_t* x_q, int64_t m, int64_t plane, const uint8_t* w, int64_t n, int64_t row_bytes, int32_t* acc,
            int64_t acc_stride) {
  for (int64_t row = 0; row < n; ++row)
    for (int64_t t = 0; t < m; ++t)
      acc[t * acc_stride + row] = dot(x_q + t * 4 * plane, plane, w + row * row_bytes, row_bytes);
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

uint32_t absmax_bits(const void* x, Dtype dtype, int64_t k) {
  switch (dtype) {
    case Dtype::kFloat32: return absmax_bits_of<Dtype::kFloat32>(x, k);
    case Dtype::kBFloat16: return absmax_bits_of<Dtype::kBFloat16>(x, k);
    default: return absmax_bits_of<Dtype::kFloat16>(x, k);
  }
}

int32_t quantize(const void* x, Dtype dtype, int64_t k, float inverse_scale, int8_t* x_q, int64_t plane) {
  switch (dtype) {
    case Dtype::kFloat32: return quantize_of<Dtype::kFloat32>(x, k, inverse_scale, x_q, plane);
    case Dtype::kBFloat16: return quantize_of<Dtype::kBFloat16>(x, k, inverse_scale, x_q, plane);
    default: return quantize_of<Dtype::kFloat16>(x, k, inverse_scale, x_q, plane);
  }
}

void store(const int32_t* acc, int64_t n, int32_t x_sum, float x_scale, const float* w_scale, int64_t w_scale_step,
           const float* bias, void* y, Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32: return store_of<Dtype::kFloat32>(acc, n, x_sum, x_scale, w_scale, w_scale_step, bias, y);
    case Dtype::kBFloat16: return store_of<Dtype::kBFloat16>(acc, n, x_sum, x_scale, w_scale, w_scale_step, bias, y);
    default: return store_of<Dtype::kFloat16>(acc, n, x_sum, x_scale, w_scale, w_scale_step, bias, y);
  }
}

}  // namespace

constinit const Kernel kPortable{"portable", 0, 4, absmax_bits, quantize, matmul, store};

}  // namespace bitlab::cpu
