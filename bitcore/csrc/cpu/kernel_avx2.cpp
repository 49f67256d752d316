// AVX2. Compiled with its own flags (ISA_FLAGS in build_extensions.py): nothing here may run before dispatch.cpp has
// asked the CPU, so there is no static constructor, no STL, and nothing but the table has external linkage.
//
// One step takes 32 bytes of a weight row. vpmaddubsw multiplies u8 codes with s8 activations and adds pairs into int16
// with saturation, so the sums must stay small. A pair is at most 2 * max_code * 128; the planes of a step add up, and
// the sums are widened to int32 before they could pass 2**15:
//
//                 pair     planes    step     widened after
//     2bit          512       4      2,048    15 steps, 30,720
//     base3         512       5      2,560    12 steps, 30,720
//     int4        3,840       2      7,680     4 steps, 30,720
//
// A pair of int8 may reach 2 * 255 * 128, so both sides are widened to int16 first, and vpmaddwd adds pairs into int32.
//
// Tiles of 2 rows x up to 4 vectors. Per 256 weights and v vectors (2bit): 2 loads, 6 vpsrlw, 8 vpand, and for each
// vector 8 vpmaddubsw from memory and 8 vpaddw.
#if !defined(__AVX2__)
#error "kernel_avx2.cpp needs -mavx2: see ISA_FLAGS in build_extensions.py"
#endif
#include "avx2_codes.h"
#include "cpu_features.h"

namespace bitlab::cpu {
namespace {

template <class>
constexpr int rows_at_once(int) {
  return 2;
}

template <class Codes, int kVectors, int kRows>
INLINE void multiply_small_codes(const Product& p, const int8_t* x_q, const uint8_t* w, int32_t* acc) {
  constexpr int64_t kBlock = 32767 / (Codes::kPlanes * 2 * Codes::kMaxCode * 128) * kStep;
  __m256i total[kVectors][kRows] = {};
  for (int64_t begin = 0; begin < p.bytes; begin += kBlock) {
    const int64_t end = begin + kBlock < p.bytes ? begin + kBlock : p.bytes;
    __m256i sum[kVectors][kRows] = {};
    for_each_step(begin, end, [&](int64_t byte, const auto& load_weights) __attribute__((always_inline)) {
      UNROLL for (int r = 0; r < kRows; ++r) {
        prefetch(w + kRows * (p.row_stride + byte) + kStep * r);
        Codes decoder{load_weights(w + r * p.row_stride + byte)};
        UNROLL for (int j = 0; j < Codes::kPlanes; ++j) {
          const __m256i codes = decoder.next(j);
          UNROLL for (int v = 0; v < kVectors; ++v) {
            const __m256i x = load_x(x_q + v * p.vector_stride + j * p.plane + byte);
            sum[v][r] = _mm256_add_epi16(sum[v][r], _mm256_maddubs_epi16(codes, x));
          }
        }
      }
    });
    UNROLL for (int v = 0; v < kVectors; ++v) {
      UNROLL for (int r = 0; r < kRows; ++r) {
        total[v][r] = _mm256_add_epi32(total[v][r], _mm256_madd_epi16(sum[v][r], _mm256_set1_epi16(1)));
      }
    }
  }
  UNROLL for (int v = 0; v < kVectors; ++v) {
    UNROLL for (int r = 0; r < kRows; ++r)
      acc[v * p.acc_stride + r] = sum_of(total[v][r]);
  }
}

template <int kVectors, int kRows>
INLINE void multiply_int8(const Product& p, const int8_t* x_q, const uint8_t* w, int32_t* acc) {
  __m256i sum[kVectors][kRows] = {};
  for_each_step(0, p.bytes, [&](int64_t byte, const auto& load_weights) __attribute__((always_inline)) {
    UNROLL for (int r = 0; r < kRows; ++r) {
      prefetch(w + kRows * (p.row_stride + byte) + kStep * r);
      const __m256i bytes = load_weights(w + r * p.row_stride + byte);
      const __m256i first = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(bytes));
      const __m256i second = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(bytes, 1));
      UNROLL for (int v = 0; v < kVectors; ++v) {
        const __m256i x = load_x(x_q + v * p.vector_stride + byte);
        const __m256i x_first = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(x));
        const __m256i x_second = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(x, 1));
        const __m256i pairs = _mm256_add_epi32(_mm256_madd_epi16(first, x_first), _mm256_madd_epi16(second, x_second));
        sum[v][r] = _mm256_add_epi32(sum[v][r], pairs);
      }
    }
  });
  UNROLL for (int v = 0; v < kVectors; ++v) {
    UNROLL for (int r = 0; r < kRows; ++r)
      acc[v * p.acc_stride + r] = sum_of(sum[v][r]);
  }
}

template <class Codes, int kVectors, int kRows>
void multiply(const Product& p, const int8_t* x_q, const uint8_t* w, int32_t* acc) {
  if constexpr (Codes::kPlanes == Int8::kPlanes) {
    multiply_int8<kVectors, kRows>(p, x_q, w, acc);
  } else {
    multiply_small_codes<Codes, kVectors, kRows>(p, x_q, w, acc);
  }
}

}  // namespace
}  // namespace bitlab::cpu

#include "tiles.h"
#include "whole_kernel.h"

namespace bitlab::cpu {

constinit const Kernel kAvx2 = whole_kernel("avx2", kFeatureAvx2, 128);

}  // namespace bitlab::cpu
