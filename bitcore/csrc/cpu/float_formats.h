// bfloat16 and float16 to float32 and back, to nearest even, in plain C++ without branches, so that compilers vectorize
// loops over them. In an anonymous namespace: each file has its own copy, compiled with its own flags.
#pragma once

#include <stdint.h>
#include <string.h>

#include "kernel.h"

namespace bitlab::cpu {
namespace {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline float from_bfloat16(uint16_t value) { return float_of(static_cast<uint32_t>(value) << 16); }

// Adding 0x7fff and the kept lowest bit carries into the upper half exactly when rounding up.
inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

inline float from_float16(uint16_t value) {
  const uint32_t sign = static_cast<uint32_t>(value & 0x8000) << 16;
  const uint32_t magnitude = value & 0x7fff;
  // Read with float32's exponent field, the value is 2**-112 of itself; the multiplication is exact, denormals
  // included.
  const uint32_t finite = bits_of(float_of(magnitude << 13) * 0x1p112f);
  const uint32_t special = 0x7f800000 | (magnitude & 0x3ff) << 13;  // Inf, NaN
  return float_of(sign | (magnitude >= 0x7c00 ? special : finite));
}

inline uint16_t to_float16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  const uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  // Adding 0.5 puts the unit in the last place of float16's denormals, 2**-24, at the last bit of float32's mantissa.
  const uint32_t denormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  uint32_t result = magnitude < 0x38800000 ? denormal : normal;  // 2**-14
  result = magnitude >= 0x477ff000 ? 0x7c00 : result;            // from 65520 on: Inf
  result = magnitude > 0x7f800000 ? 0x7e00 : result;             // NaN
  return static_cast<uint16_t>(sign | result);
}

template <Dtype dtype>
inline float load(const void* x, int64_t index) {
  if constexpr (dtype == Dtype::kFloat32) {
    return static_cast<const float*>(x)[index];
  } else if constexpr (dtype == Dtype::kBFloat16) {
    return from_bfloat16(static_cast<const uint16_t*>(x)[index]);
  } else {
    return from_float16(static_cast<const uint16_t*>(x)[index]);
  }
}

template <Dtype dtype>
inline void store(void* y, int64_t index, float value) {
  if constexpr (dtype == Dtype::kFloat32) {
    static_cast<float*>(y)[index] = value;
  } else {
    static_cast<uint16_t*>(y)[index] = dtype == Dtype::kBFloat16 ? to_bfloat16(value) : to_float16(value);
  }
}

}  // namespace
}  // namespace bitlab::cpu
