// AVX-VNNI: vpdpbusd on 256 bits, for CPUs that have it without AVX-512. Compiled with its own flags (ISA_FLAGS in
// build_extensions.py): nothing here may run before dispatch.cpp has asked the CPU, so there is no static constructor,
// no STL, and nothing but the table has external linkage.
//
// One step takes 32 bytes of a weight row, 128 weights. One token (GEMV), 4 rows: planes 0 and 2 come from w and w >> 4
// with mask 0x03, planes 1 and 3 with mask 0x0c, times 4. Each pair of planes has an int32 accumulator; the second is
// shifted right at the end, which is exact. Two accumulators for 4 rows are what 16 registers hold.
//   Instructions per 256 weights: 2 loads, 2 shifts, 8 vpand, 8 vpdpbusd.
// Up to 4 tokens (GEMM): codes are shifted to 0..2, one accumulator for a token and row.
//   Instructions per 256 weights and 4 tokens: 2 loads, 6 shifts, 8 vpand, 32 vpdpbusd from memory.
#if !defined(__AVX2__) || !defined(__F16C__) || !defined(__AVXVNNI__)
#error "kernel_avx_vnni.cpp needs -mavx2 -mf16c -mavxvnni: see ISA_FLAGS in build_extensions.py"
#endif
#include "avx2_common.h"
#include "cpu_features.h"

namespace bitlab::cpu {
namespace {

template <int kRows>
void gemv(const int8_t* x_q, int64_t plane, const uint8_t* w, int64_t row_bytes, int32_t* acc) {
  constexpr int64_t kPrefetchRows = 16;
  const __m256i mask = _mm256_set1_epi8(0x03), mask_times_4 = _mm256_set1_epi8(0x0c);
  __m256i even[kRows] = {}, odd_times_4[kRows] = {};
  for (int64_t byte = 0; byte < row_bytes; byte += kStep) {
    const __m256i x0 = load_x(x_q + byte), x1 = load_x(x_q + plane + byte);
    const __m256i x2 = load_x(x_q + 2 * plane + byte), x3 = load_x(x_q + 3 * plane + byte);
    UNROLL for (int r = 0; r < kRows; ++r) {
      const uint8_t* row = w + r * row_bytes;
      _mm_prefetch(reinterpret_cast<const char*>(row + byte + kPrefetchRows * row_bytes), _MM_HINT_T0);
      const __m256i low = load_row(row, byte, row_bytes);
      const __m256i high = _mm256_srli_epi16(low, 4);
      even[r] = _mm256_dpbusd_avx_epi32(even[r], _mm256_and_si256(low, mask), x0);
      odd_times_4[r] = _mm256_dpbusd_avx_epi32(odd_times_4[r], _mm256_and_si256(low, mask_times_4), x1);
      even[r] = _mm256_dpbusd_avx_epi32(even[r], _mm256_and_si256(high, mask), x2);
      odd_times_4[r] = _mm256_dpbusd_avx_epi32(odd_times_4[r], _mm256_and_si256(high, mask_times_4), x3);
    }
  }
  for (int r = 0; r < kRows; ++r) acc[r] = sum_of(_mm256_add_epi32(even[r], _mm256_srai_epi32(odd_times_4[r], 2)));
}

template <int kTokens, int kRows>
void gemm(const int8_t* x_q, int64_t plane, const uint8_t* w, int64_t row_bytes, int32_t* acc, int64_t acc_stride) {
  const __m256i mask = _mm256_set1_epi8(0x03);
  __m256i sum[kTokens][kRows] = {};
  for (int64_t byte = 0; byte < row_bytes; byte += kStep) {
    __m256i rows[kRows];
    UNROLL for (int r = 0; r < kRows; ++r)
      rows[r] = load_row(w + r * row_bytes, byte, row_bytes);
    UNROLL for (int j = 0; j < 4; ++j) {
      UNROLL for (int r = 0; r < kRows; ++r) {
        const __m256i codes = _mm256_and_si256(_mm256_srli_epi16(rows[r], 2 * j), mask);
        UNROLL for (int t = 0; t < kTokens; ++t) {
          sum[t][r] = _mm256_dpbusd_avx_epi32(sum[t][r], codes, load_x(x_q + (4 * t + j) * plane + byte));
        }
      }
    }
  }
  for (int t = 0; t < kTokens; ++t)
    for (int r = 0; r < kRows; ++r) acc[t * acc_stride + r] = sum_of(sum[t][r]);
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
  if (m == 1) {
    for (; row + 4 <= n; row += 4) gemv<4>(x_q, plane, w + row * row_bytes, row_bytes, acc + row);
  }
  for (; row + 2 <= n; row += 2) tile<2>(x_q, m, plane, w + row * row_bytes, row_bytes, acc + row, acc_stride);
  if (row < n) tile<1>(x_q, m, plane, w + row * row_bytes, row_bytes, acc + row, acc_stride);
}

constexpr uint64_t kRequired = kFeatureAvx2 | kFeatureF16c | kFeatureAvxVnni;

}  // namespace

constinit const Kernel kAvxVnni{"avx_vnni", kRequired, 4, absmax_bits, quantize, matmul, store};

}  // namespace bitlab::cpu
