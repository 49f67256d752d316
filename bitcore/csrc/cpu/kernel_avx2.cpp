// AVX2. Compiled with its own flags (ISA_FLAGS in build_extensions.py): nothing here may run before dispatch.cpp has
// asked the CPU, so there is no static constructor, no STL, and nothing but the table has external linkage.
//
// One step takes 32 bytes of a weight row, 128 weights. vpmaddubsw multiplies u8 codes with s8 activations and adds
// pairs into int16 with saturation, so the sums must stay small:
//
//     a pair of codes of one plane            at most  2 * 2 * 128  =    512
//     the same with codes times 4             at most  4 * 512      =  2,048
//
// One token (GEMV): planes 0 and 2 come from w and w >> 4 with mask 0x03, planes 1 and 3 with mask 0x0c, times 4. Each
// pair of planes has an int16 accumulator: planes 0 and 2 add up to 1,024 a step, planes 1 and 3 to 4,096. After 7
// steps both are widened to int32: 7 * 4,096 = 28,672 < 32,768.
//   Instructions per 256 weights: 2 loads, 2 shifts, 8 vpand, 8 vpmaddubsw, 8 vpaddw, and 8 for 7 steps to widen.
// Up to 4 tokens (GEMM): codes are shifted to 0..2 for 2 rows and multiplied with every token; the 4 planes add up to
// 2,048 a step, and after 15 steps the sums are widened: 15 * 2,048 = 30,720.
//   Instructions per 256 weights and 4 tokens: 8 loads, 6 shifts, 8 vpand, 32 vpmaddubsw from memory, 32 vpaddw.
#if !defined(__AVX2__) || !defined(__F16C__)
#error "kernel_avx2.cpp needs -mavx2 -mf16c: see ISA_FLAGS in build_extensions.py"
#endif
#include "avx2_common.h"
#include "cpu_features.h"

namespace bitlab::cpu {
namespace {

// Sums of neighbouring int16, as int32.
inline __m256i widen(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

template <int kRows>
void gemv(const int8_t* x_q, int64_t plane, const uint8_t* w, int64_t row_bytes, int32_t* acc) {
  constexpr int64_t kSteps = 7;
  constexpr int64_t kPrefetchRows = 16;
  const __m256i mask = _mm256_set1_epi8(0x03), mask_times_4 = _mm256_set1_epi8(0x0c);
  __m256i total[kRows] = {};
  for (int64_t begin = 0; begin < row_bytes; begin += kSteps * kStep) {
    const int64_t end = begin + kSteps * kStep < row_bytes ? begin + kSteps * kStep : row_bytes;
    __m256i even[kRows] = {}, odd_times_4[kRows] = {};
    for (int64_t byte = begin; byte < end; byte += kStep) {
      const __m256i x0 = load_x(x_q + byte), x1 = load_x(x_q + plane + byte);
      const __m256i x2 = load_x(x_q + 2 * plane + byte), x3 = load_x(x_q + 3 * plane + byte);
      UNROLL for (int r = 0; r < kRows; ++r) {
        const uint8_t* row = w + r * row_bytes;
        _mm_prefetch(reinterpret_cast<const char*>(row + byte + kPrefetchRows * row_bytes), _MM_HINT_T0);
        const __m256i low = load_row(row, byte, row_bytes);
        const __m256i high = _mm256_srli_epi16(low, 4);
        const __m256i plane0 = _mm256_maddubs_epi16(_mm256_and_si256(low, mask), x0);
        const __m256i plane1 = _mm256_maddubs_epi16(_mm256_and_si256(low, mask_times_4), x1);
        const __m256i plane2 = _mm256_maddubs_epi16(_mm256_and_si256(high, mask), x2);
        const __m256i plane3 = _mm256_maddubs_epi16(_mm256_and_si256(high, mask_times_4), x3);
        even[r] = _mm256_add_epi16(even[r], _mm256_add_epi16(plane0, plane2));
        odd_times_4[r] = _mm256_add_epi16(odd_times_4[r], _mm256_add_epi16(plane1, plane3));
      }
    }
    UNROLL for (int r = 0; r < kRows; ++r) {
      const __m256i odd = _mm256_srai_epi32(widen(odd_times_4[r]), 2);
      total[r] = _mm256_add_epi32(total[r], _mm256_add_epi32(widen(even[r]), odd));
    }
  }
  for (int r = 0; r < kRows; ++r) acc[r] = sum_of(total[r]);
}

template <int kTokens, int kRows>
void gemm(const int8_t* x_q, int64_t plane, const uint8_t* w, int64_t row_bytes, int32_t* acc, int64_t acc_stride) {
  constexpr int64_t kSteps = 15;
  const __m256i mask = _mm256_set1_epi8(0x03);
  __m256i total[kTokens][kRows] = {};
  for (int64_t begin = 0; begin < row_bytes; begin += kSteps * kStep) {
    const int64_t end = begin + kSteps * kStep < row_bytes ? begin + kSteps * kStep : row_bytes;
    __m256i sum[kTokens][kRows] = {};
    for (int64_t byte = begin; byte < end; byte += kStep) {
      __m256i rows[kRows];
      UNROLL for (int r = 0; r < kRows; ++r)
        rows[r] = load_row(w + r * row_bytes, byte, row_bytes);
      UNROLL for (int j = 0; j < 4; ++j) {
        UNROLL for (int r = 0; r < kRows; ++r) {
          const __m256i codes = _mm256_and_si256(_mm256_srli_epi16(rows[r], 2 * j), mask);
          UNROLL for (int t = 0; t < kTokens; ++t) {
            const __m256i product = _mm256_maddubs_epi16(codes, load_x(x_q + (4 * t + j) * plane + byte));
            sum[t][r] = _mm256_add_epi16(sum[t][r], product);
          }
        }
      }
    }
    UNROLL for (int t = 0; t < kTokens; ++t) {
      UNROLL for (int r = 0; r < kRows; ++r)
        total[t][r] = _mm256_add_epi32(total[t][r], widen(sum[t][r]));
    }
  }
  for (int t = 0; t < kTokens; ++t)
    for (int r = 0; r < kRows; ++r) acc[t * acc_stride + r] = sum_of(total[t][r]);
}

template <int kRows>
void tile(const int8_t* x_q, int64_t m, int64_t plane, const uint8_t* w, int64_t row_bytes, int32_t* acc,
          int64_t acc_stride) {
  switch (m) {
    case 1: return gemv<kRows>(x_q, plane, w, row_bytes, acc);
    case 2: return gemm<2, kRows>(x_q, plane, w, row_bytes, acc, acc_stride);
    case 3: return gemm<3, kRows>(x_q, plane, w, row_bytes, acc, acc_stride);
    default: return gemm<4, kRows>(x_q, plane, w, row_bytes, acc, acc_stride);
  }
}

void matmul(const int8_t* x_q, int64_t m, int64_t plane, const uint8_t* w, int64_t n, int64_t row_bytes, int32_t* acc,
            int64_t acc_stride) {
  int64_t row = 0;
  for (; row + 2 <= n; row += 2) tile<2>(x_q, m, plane, w + row * row_bytes, row_bytes, acc + row, acc_stride);
  if (row < n) tile<1>(x_q, m, plane, w + row * row_bytes, row_bytes, acc + row, acc_stride);
}

constexpr uint64_t kRequired = kFeatureAvx2 | kFeatureF16c;

}  // namespace

constinit const Kernel kAvx2{"avx2", kRequired, 4, absmax_bits, quantize, matmul, store};

}  // namespace bitlab::cpu
