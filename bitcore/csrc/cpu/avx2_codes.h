// What the 256-bit x86 kernels share: 32 bytes of a weight row, and the codes in them. Included by files with
// instruction set flags, so no STL, and everything is in an anonymous namespace: each file has its own copy, with its
// own flags.
#pragma once

#include <immintrin.h>
#include <string.h>

#include "kernel.h"

namespace bitlab::cpu {
namespace {

// Arrays of vectors stay in registers only where the loops over them are unrolled.
#define UNROLL _Pragma("GCC unroll 8")
#define INLINE __attribute__((always_inline)) inline

constexpr int64_t kStep = 32;  // bytes of one load

// Codes of 32 bytes, plane after plane; kMaxCode is the largest.
template <int kBits, int kMaxCode_>
struct BitFields {
  static constexpr int kPlanes = 8 / kBits, kMaxCode = kMaxCode_;
  __m256i bytes;
  INLINE __m256i next(int plane) {
    return _mm256_and_si256(_mm256_srli_epi16(bytes, kBits * plane), _mm256_set1_epi8((1 << kBits) - 1));
  }
};
using TwoBit = BitFields<2, 2>;
using Int4 = BitFields<4, 15>;
using Int8 = BitFields<8, 255>;

struct Base3 {
  static constexpr int kPlanes = 5, kMaxCode = 2;
  __m256i rest;  // minus 128, because AVX2 compares signed bytes; that stays so when 3 * rest is taken modulo 256
  explicit Base3(__m256i bytes) : rest(_mm256_xor_si256(bytes, _mm256_set1_epi8(-128))) {}
  INLINE __m256i next(int) {  // floor(3 * rest / 256): 1 from 86 on, 2 from 171; a comparison gives -1
    const __m256i one = _mm256_cmpgt_epi8(rest, _mm256_set1_epi8(85 - 128));
    const __m256i two = _mm256_cmpgt_epi8(rest, _mm256_set1_epi8(170 - 128));
    rest = _mm256_add_epi8(_mm256_add_epi8(rest, rest), rest);
    return _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(one, two));
  }
};

INLINE int32_t sum_of(__m256i a) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0b01001110));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0b10110001)));
}

// Calls step(byte, load) for bytes begin..end; load(pointer) gives 32 bytes, zeros behind `end`.
template <class Step>
INLINE void for_each_step(int64_t begin, int64_t end, const Step& step) {
  int64_t byte = begin;
  for (; byte + kStep <= end; byte += kStep) {
    step(byte, [](const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); });
  }
  if (byte < end) {
    const size_t rest = static_cast<size_t>(end - byte);
    step(byte, [rest](const uint8_t* p) {
      alignas(32) uint8_t bytes[kStep] = {};
      memcpy(bytes, p, rest);
      return _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes));
    });
  }
}

INLINE __m256i load_x(const int8_t* x) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)); }

// What lies 6 KiB behind `w`, to L2: L1 has too few miss buffers to hide DRAM, and hardware prefetchers stop at the
// ends of pages.
INLINE void prefetch(const uint8_t* w) {
  constexpr int64_t kAhead = 6144;
  _mm_prefetch(reinterpret_cast<const char*>(w + kAhead), _MM_HINT_T1);
}

}  // namespace
}  // namespace bitlab::cpu
