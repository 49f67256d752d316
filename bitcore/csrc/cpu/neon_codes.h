// What the NEON kernels share: 16 bytes of a weight row, and the codes in them. Included by files with instruction set
// flags, so no STL, and everything is in an anonymous namespace: each file has its own copy, with its own flags.
#pragma once

#include <arm_neon.h>
#include <string.h>

#include "kernel.h"

namespace bitlab::cpu {
namespace {

// Arrays of vectors stay in registers only where the loops over them are unrolled.
#define UNROLL _Pragma("GCC unroll 8")
#define INLINE __attribute__((always_inline)) inline

constexpr int64_t kStep = 16;  // bytes of one load

// Codes of 16 bytes, plane after plane; kMaxCode is the largest.
template <int kBits, int kMaxCode_>
struct BitFields {
  static constexpr int kPlanes = 8 / kBits, kMaxCode = kMaxCode_;
  static constexpr uint8_t kPadding = 0;  // a byte whose codes are 0
  uint8x16_t bytes;
  INLINE int8x16_t next(int plane) {
    const uint8x16_t shifted = vshlq_u8(bytes, vdupq_n_s8(static_cast<int8_t>(-kBits * plane)));
    return vreinterpretq_s8_u8(vandq_u8(shifted, vdupq_n_u8((1 << kBits) - 1)));
  }
};
using TwoBit = BitFields<2, 2>;
using Int4 = BitFields<4, 15>;

struct Base3 {
  static constexpr int kPlanes = 5, kMaxCode = 2;
  static constexpr uint8_t kPadding = 0;
  uint8x16_t rest;
  INLINE int8x16_t next(int) {  // floor(3 * rest / 256): 1 from 86 on, 2 from 171; a comparison gives -1
    const uint8x16_t one = vcgeq_u8(rest, vdupq_n_u8(86)), two = vcgeq_u8(rest, vdupq_n_u8(171));
    rest = vmulq_u8(rest, vdupq_n_u8(3));
    return vnegq_s8(vreinterpretq_s8_u8(vaddq_u8(one, two)));
  }
};

// Dots are of signed bytes, so here the code is the weight itself.
struct Int8 {
  static constexpr int kPlanes = 1, kMaxCode = 128;
  static constexpr uint8_t kPadding = 128;
  uint8x16_t bytes;
  INLINE int8x16_t next(int) { return vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(128))); }
};

// Calls step(byte, load) for bytes begin..end; load(pointer) gives 16 bytes, codes of 0 behind `end`.
template <class Codes, class Step>
INLINE void for_each_step(int64_t begin, int64_t end, const Step& step) {
  int64_t byte = begin;
  for (; byte + kStep <= end; byte += kStep) step(byte, [](const uint8_t* p) { return vld1q_u8(p); });
  if (byte < end) {
    const size_t rest = static_cast<size_t>(end - byte);
    step(byte, [rest](const uint8_t* p) {
      uint8_t bytes[kStep];
      memset(bytes, Codes::kPadding, kStep);
      memcpy(bytes, p, rest);
      return vld1q_u8(bytes);
    });
  }
}

}  // namespace
}  // namespace bitlab::cpu
