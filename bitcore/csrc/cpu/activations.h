// From float activations to the int8 vectors that matmul reads. Plain C++ in loops that compilers vectorize with the
// flags of the file that includes this one; in an anonymous namespace, so that each file has its own copy.
#pragma once

#include <string.h>

#include "float_formats.h"
#include "kernel.h"

namespace bitlab::cpu {
namespace {

constexpr int64_t kChunk =
    1280;  // values quantized before they are dealt to planes; whole 64 bytes of 1, 2, 4 or 5 planes

template <Dtype dtype>
uint32_t absmax_bits_of(const void* x, int64_t k) {
  int32_t largest = 0;
  for (int64_t i = 0; i < k; ++i) {
    const int32_t magnitude = static_cast<int32_t>(bits_of(load<dtype>(x, i)) & 0x7fffffff);
    largest = magnitude > largest ? magnitude : largest;
  }
  return static_cast<uint32_t>(largest);
}

// To the nearest integer, half to even, for abs(value) < 2**23: adding 2**23 leaves no bits for a fraction.
inline int32_t round_to_int(float value) {
  const uint32_t magnitude = bits_of(float_of(bits_of(value) & 0x7fffffff) + 0x1p23f) - bits_of(0x1p23f);
  const int32_t result = static_cast<int32_t>(magnitude);
  return value < 0.0f ? -result : result;
}

template <Dtype dtype, int kDigits>
void quantize_in_order(const void* x, int64_t begin, int64_t count, float factor, int8_t (*q)[kChunk],
                       int32_t* x_sums) {
  int32_t sum0 = 0, sum1 = 0, sum2 = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t value = round_to_int(load<dtype>(x, begin + i) * factor);
    if constexpr (kDigits == 1) {
      q[0][i] = static_cast<int8_t>(value);
      sum0 += value;
    } else {
      const int32_t shifted = value + 0x8080;  // makes the lower digits -128..127 of what are bytes 0..255
      const int32_t digit0 = shifted >> 16, digit1 = (shifted >> 8 & 255) - 128, digit2 = (shifted & 255) - 128;
      q[0][i] = static_cast<int8_t>(digit0);
      q[1][i] = static_cast<int8_t>(digit1);
      q[2][i] = static_cast<int8_t>(digit2);
      sum0 += digit0;
      sum1 += digit1;
      sum2 += digit2;
    }
  }
  x_sums[0] += sum0;
  if constexpr (kDigits > 1) {
    x_sums[1] += sum1;
    x_sums[2] += sum2;
  }
}

// Value planes * i + j goes to byte i of plane j.
template <int kPlanes>
void deal(const int8_t* __restrict q, int64_t bytes, int8_t* __restrict x_q, int64_t plane) {
  for (int64_t i = 0; i < bytes; ++i) {
    for (int j = 0; j < kPlanes; ++j) x_q[j * plane + i] = q[kPlanes * i + j];
  }
}

template <Dtype dtype, int kDigits>
void quantize_of(const void* x, int64_t k, float factor, int planes, int8_t* x_q, int64_t plane, int32_t* x_sums) {
  alignas(64) int8_t q[kDigits][kChunk];
  for (int d = 0; d < kDigits; ++d) x_sums[d] = 0;
  for (int64_t begin = 0; begin < k; begin += kChunk) {
    const int64_t count = k - begin < kChunk ? k - begin : kChunk;
    quantize_in_order<dtype, kDigits>(x, begin, count, factor, q, x_sums);
    const int64_t bytes = (count + planes - 1) / planes;
    for (int d = 0; d < kDigits; ++d) {
      memset(q[d] + count, 0, static_cast<size_t>(bytes * planes - count));
      int8_t* to = x_q + d * planes * plane + begin / planes;
      switch (planes) {
        case 1: memcpy(to, q[d], static_cast<size_t>(count)); break;
        case 2: deal<2>(q[d], bytes, to, plane); break;
        case 4: deal<4>(q[d], bytes, to, plane); break;
        default: deal<5>(q[d], bytes, to, plane); break;
      }
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

template <int kDigits>
void quantize_to(const void* x, Dtype dtype, int64_t k, float factor, int planes, int8_t* x_q, int64_t plane,
                 int32_t* x_sums) {
  switch (dtype) {
    case Dtype::kFloat32: return quantize_of<Dtype::kFloat32, kDigits>(x, k, factor, planes, x_q, plane, x_sums);
    case Dtype::kBFloat16: return quantize_of<Dtype::kBFloat16, kDigits>(x, k, factor, planes, x_q, plane, x_sums);
    default: return quantize_of<Dtype::kFloat16, kDigits>(x, k, factor, planes, x_q, plane, x_sums);
  }
}

void quantize(const void* x, Dtype dtype, int64_t k, float factor, int digits, int planes, int8_t* x_q, int64_t plane,
              int32_t* x_sums) {
  if (digits == 1) {
    quantize_to<1>(x, dtype, k, factor, planes, x_q, plane, x_sums);
  } else {
    quantize_to<kFloatDigits>(x, dtype, k, factor, planes, x_q, plane, x_sums);
  }
}

}  // namespace
}  // namespace bitlab::cpu
