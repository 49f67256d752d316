// What the 256-bit x86 kernels share: quantize and store. Included by files with instruction set flags, so no STL, and
// everything is in an anonymous namespace: each file has its own copy, compiled with its own flags.
#pragma once

#include <immintrin.h>
#include <string.h>

#include "kernel.h"

namespace bitlab::cpu {
namespace {

// Arrays of vectors stay in registers only where the loops over them are unrolled.
#define UNROLL _Pragma("GCC unroll 8")

constexpr int64_t kStep = 32;  // bytes of one load

template <Dtype dtype>
constexpr int64_t kItemSize = dtype == Dtype::kFloat32 ? 4 : 2;

template <Dtype dtype>
__m256 load_8(const char* x) {
  if constexpr (dtype == Dtype::kFloat32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(x));
  } else {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    if constexpr (dtype == Dtype::kFloat16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
}

template <Dtype dtype>
void store_8(char* y, __m256 value) {
  if constexpr (dtype == Dtype::kFloat32) {
    _mm256_storeu_ps(reinterpret_cast<float*>(y), value);
  } else {
    __m128i half;
    if constexpr (dtype == Dtype::kFloat16) {
      half = _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
    } else {
      // To nearest even: adding 0x7fff and the kept lowest bit carries into the upper half exactly when rounding up.
      const __m256i bits = _mm256_castps_si256(value);
      const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
      const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
      const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
      const __m256i upper = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
      const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0b1000);
      half = _mm256_castsi256_si128(packed);
    }
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), half);
  }
}

int32_t sum_of(__m256i a) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0b01001110));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0b10110001)));
}

template <Dtype dtype>
uint32_t absmax_bits_of(const void* x, int64_t k) {
  const char* bytes = static_cast<const char*>(x);
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i largest = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + 8 <= k; i += 8) {
    const __m256i bits = _mm256_castps_si256(load_8<dtype>(bytes + i * kItemSize<dtype>));
    largest = _mm256_max_epu32(largest, _mm256_and_si256(bits, magnitude));
  }
  if (i < k) {
    char rest[8 * 4] = {};
    memcpy(rest, bytes + i * kItemSize<dtype>, static_cast<size_t>((k - i) * kItemSize<dtype>));
    largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_castps_si256(load_8<dtype>(rest)), magnitude));
  }
  __m128i half = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0b01001110));
  half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0b10110001));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(half));
}

// 32 activations as int8, byte 4i + j moved to byte 8j + i. Adds them to sum (16 pairs of pairs, int32).
template <Dtype dtype>
__m256i quantize_32(const char* x, __m256 inverse_scale, __m256i& sum) {
  __m256i q[4];
  UNROLL for (int part = 0; part < 4; ++part) {
    q[part] = _mm256_cvtps_epi32(_mm256_mul_ps(load_8<dtype>(x + 8 * part * kItemSize<dtype>), inverse_scale));
  }
  // Packing works within 128-bit halves: dwords 0, 4, 1, 5, ... hold the bytes in order.
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  const __m256i in_order = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  const __m256i within_halves =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(in_order, within_halves),
                                     _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

template <Dtype dtype>
int32_t quantize_of(const void* x, int64_t k, float inverse_scale, int8_t* x_q, int64_t plane) {
  const char* bytes = static_cast<const char*>(x);
  const __m256 factor = _mm256_set1_ps(inverse_scale);
  __m256i sum = _mm256_setzero_si256();
  for (int64_t byte = 0, i = 0; byte < plane; byte += 8, i += 32) {
    __m256i q = _mm256_setzero_si256();
    if (i + 32 <= k) {
      q = quantize_32<dtype>(bytes + i * kItemSize<dtype>, factor, sum);
    } else if (i < k) {
      char rest[32 * 4] = {};
      memcpy(rest, bytes + i * kItemSize<dtype>, static_cast<size_t>((k - i) * kItemSize<dtype>));
      q = quantize_32<dtype>(rest, factor, sum);
    }
    const __m128i low = _mm256_castsi256_si128(q), high = _mm256_extracti128_si256(q, 1);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(x_q + byte), low);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(x_q + plane + byte), _mm_unpackhi_epi64(low, low));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(x_q + 2 * plane + byte), high);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(x_q + 3 * plane + byte), _mm_unpackhi_epi64(high, high));
  }
  return sum_of(sum);
}

template <Dtype dtype>
void store_of(const int32_t* acc, int64_t n, int32_t x_sum, float x_scale, const float* w_scale, int64_t w_scale_step,
              const float* bias, void* y) {
  const __m256i sum = _mm256_set1_epi32(x_sum);
  const __m256 token_scale = _mm256_set1_ps(x_scale);
  const __m256 tensor_scale = _mm256_set1_ps(x_scale * w_scale[0]);
  const auto eight = [&](const int32_t* sums, const float* scales, const float* biases, char* out) {
    const __m256i difference = _mm256_sub_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums)), sum);
    const __m256 scale = w_scale_step == 0 ? tensor_scale : _mm256_mul_ps(token_scale, _mm256_loadu_ps(scales));
    __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(difference), scale);
    if (biases != nullptr) value = _mm256_add_ps(value, _mm256_loadu_ps(biases));
    store_8<dtype>(out, value);
  };
  char* out = static_cast<char*>(y);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    eight(acc + i, w_scale + i * w_scale_step, bias == nullptr ? nullptr : bias + i, out + i * kItemSize<dtype>);
  }
  if (i < n) {
    const size_t rest = static_cast<size_t>(n - i);
    int32_t sums[8] = {};
    float scales[8] = {}, biases[8] = {};
    char result[8 * 4];
    memcpy(sums, acc + i, rest * sizeof(int32_t));
    if (w_scale_step != 0) memcpy(scales, w_scale + i, rest * sizeof(float));
    if (bias != nullptr) memcpy(biases, bias + i, rest * sizeof(float));
    eight(sums, scales, bias == nullptr ? nullptr : biases, result);
    memcpy(out + i * kItemSize<dtype>, result, rest * kItemSize<dtype>);
  }
}

// 32 bytes of a weight row from `byte` on; zeros behind its end, which is never read across.
inline __m256i load_row(const uint8_t* row, int64_t byte, int64_t row_bytes) {
  if (byte + kStep <= row_bytes) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + byte));
  alignas(32) uint8_t rest[kStep] = {};
  memcpy(rest, row + byte, static_cast<size_t>(row_bytes - byte));
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(rest));
}

inline __m256i load_x(const int8_t* x) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(x)); }

}  // namespace
}  // namespace bitlab::cpu

#include "by_dtype.h"
