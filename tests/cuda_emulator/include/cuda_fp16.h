#pragma once

#include "../../../bitcore/csrc/cpu/float_formats.h"
#include "vectors.h"

struct __half {
  uint16_t bits;
};
struct __half2 {
  __half x, y;
};

inline float __half2float(__half value) { return bitlab::cpu::from_float16(value.bits); }
inline __half __float2half_rn(float value) { return {bitlab::cpu::to_float16(value)}; }
inline __half2 __floats2half2_rn(float low, float high) { return {__float2half_rn(low), __float2half_rn(high)}; }
inline float2 __half22float2(__half2 value) { return {__half2float(value.x), __half2float(value.y)}; }
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
