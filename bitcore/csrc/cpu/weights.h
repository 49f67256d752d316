// From float weights to packed ternary ones, for training. Plain C++ in loops that compilers vectorize with the flags
// of the file that includes this one; in an anonymous namespace, so that each file has its own copy.
//
//     w  float [K]  ->  codes  uint8 [1280] in L1  ->  bytes: 4 codes of 2bit with three shifts of a 32-bit word,
//                       2 comparisons a weight          5 codes of base3 through a table of 243 bytes
#pragma once

#include <math.h>
#include <string.h>

#include "float_formats.h"
#include "kernel.h"

namespace bitlab::cpu {
namespace {

constexpr int64_t kCodes = 1280;  // weights coded before they are packed; whole bytes of 4 or 5
constexpr int kSums = 16;
constexpr int kZeroCode = 1;  // of a weight of 0

// In as many sums as there are lanes, whatever the instruction set, so that every CPU adds in the same order.
template <Dtype dtype>
double magnitude_sum_of(const void* w, int64_t k) {
  double lanes[kSums] = {};
  const int64_t whole = k / kSums * kSums;
  for (int64_t i = 0; i < whole; i += kSums) {
    for (int lane = 0; lane < kSums; ++lane) lanes[lane] += static_cast<double>(fabsf(load<dtype>(w, i + lane)));
  }
  double sum = 0.0;
  for (int64_t i = whole; i < k; ++i) sum += static_cast<double>(fabsf(load<dtype>(w, i)));
  for (const double lane : lanes) sum += lane;
  return sum;
}

double magnitude_sum(const void* w, Dtype dtype, int64_t k) {
  switch (dtype) {
    case Dtype::kFloat32: return magnitude_sum_of<Dtype::kFloat32>(w, k);
    case Dtype::kBFloat16: return magnitude_sum_of<Dtype::kBFloat16>(w, k);
    default: return magnitude_sum_of<Dtype::kFloat16>(w, k);
  }
}

template <Dtype dtype>
void ternary_codes(const void* w, int64_t begin, int64_t count, float factor, float bound, uint8_t* codes) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = load<dtype>(w, begin + i) * factor;
    codes[i] = static_cast<uint8_t>(1 + (value > bound) - (value < -bound));
  }
}

inline void pack_2bit(const uint8_t* __restrict codes, int64_t bytes, uint8_t* __restrict packed) {
  for (int64_t i = 0; i < bytes; ++i) {
    uint32_t word;
    memcpy(&word, codes + 4 * i, sizeof word);
    packed[i] = static_cast<uint8_t>(word | word >> 6 | word >> 12 | word >> 18);
  }
}

inline void pack_base3(const uint8_t* __restrict codes, int64_t bytes, uint8_t* __restrict packed) {
  for (int64_t i = 0; i < bytes; ++i) {
    const uint8_t* u = codes + 5 * i;
    const uint32_t value = (((u[0] * 3u + u[1]) * 3u + u[2]) * 3u + u[3]) * 3u + u[4];
    packed[i] = static_cast<uint8_t>((256 * value + 242) / 243);
  }
}

template <Dtype dtype>
void pack_ternary_of(Format format, const void* w, int64_t k, float factor, float bound, uint8_t* packed) {
  alignas(64) uint8_t codes[kCodes];
  const int64_t per_byte = weights_per_byte(format);
  for (int64_t begin = 0; begin < k; begin += kCodes) {
    const int64_t count = k - begin < kCodes ? k - begin : kCodes;
    const int64_t bytes = (count + per_byte - 1) / per_byte;
    ternary_codes<dtype>(w, begin, count, factor, bound, codes);
    memset(codes + count, kZeroCode, static_cast<size_t>(bytes * per_byte - count));
    if (format == Format::k2Bit) {
      pack_2bit(codes, bytes, packed + begin / per_byte);
    } else {
      pack_base3(codes, bytes, packed + begin / per_byte);
    }
  }
}

void pack_ternary(Format format, const void* w, Dtype dtype, int64_t k, float factor, float bound, uint8_t* packed) {
  switch (dtype) {
    case Dtype::kFloat32: return pack_ternary_of<Dtype::kFloat32>(format, w, k, factor, bound, packed);
    case Dtype::kBFloat16: return pack_ternary_of<Dtype::kBFloat16>(format, w, k, factor, bound, packed);
    default: return pack_ternary_of<Dtype::kFloat16>(format, w, k, factor, bound, packed);
  }
}

}  // namespace
}  // namespace bitlab::cpu
