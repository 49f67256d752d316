// NEON with the dot product instructions of Armv8.2 (sdot). Compiled with its own flags (ISA_FLAGS in
// build_extensions.py): no static constructor, no STL, and nothing but the table has external linkage.
//
// One step takes 16 bytes of a weight row, 64 weights; sdot adds 4 products to each of 4 int32 lanes. One accumulator
// for a token and row; 4 rows share the loads of x_q.
//   Instructions per 256 weights: 4 loads, 12 shifts, 12 masks; and for each token 16 sdot and 4 loads of x_q.
#if !defined(__ARM_FEATURE_DOTPROD)
#error "kernel_neon_dotprod.cpp needs -march=armv8.2-a+dotprod: see ISA_FLAGS in build_extensions.py"
#endif
#include "cpu_features.h"
#include "neon_common.h"

namespace bitlab::cpu {
namespace {

template <int j, int kTokens, int kRows>
__attribute__((always_inline)) inline void add_plane(int32x4_t (&sum)[kTokens][kRows], const uint8x16_t (&bytes)[kRows],
                                                     const int8_t* x, int64_t token_stride) {
  int8x16_t codes[kRows];
  UNROLL for (int r = 0; r < kRows; ++r)
    codes[r] = codes_of<j>(bytes[r]);
  UNROLL for (int t = 0; t < kTokens; ++t) {
    const int8x16_t values = vld1q_s8(x + t * token_stride);
    UNROLL for (int r = 0; r < kRows; ++r)
      sum[t][r] = vdotq_s32(sum[t][r], codes[r], values);
  }
}

template <int kTokens, int kRows>
void gemm(const int8_t* x_q, int64_t plane, const uint8_t* w, int64_t row_bytes, int32_t* acc, int64_t acc_stride) {
  int32x4_t sum[kTokens][kRows] = {};
  for (int64_t byte = 0; byte < row_bytes; byte += kStep) {
    uint8x16_t bytes[kRows];
    UNROLL for (int r = 0; r < kRows; ++r)
      bytes[r] = load_row(w + r * row_bytes, byte, row_bytes);
    add_plane<0>(sum, bytes, x_q + byte, 4 * plane);
    add_plane<1>(sum, bytes, x_q + plane + byte, 4 * plane);
    add_plane<2>(sum, bytes, x_q + 2 * plane + byte, 4 * plane);
    add_plane<3>(sum, bytes, x_q + 3 * plane + byte, 4 * plane);
  }
  for (int t = 0; t < kTokens; ++t)
    for (int r = 0; r < kRows; ++r) acc[t * acc_stride + r] = vaddvq_s32(sum[t][r]);
}

template <int kRows>
void tile(const int8_t* x_q, int64_t m, int64_t plane, const uint8_t* w, int64_t row_bytes, int32_t* acc,
          int64_t acc_stride) {
  switch (m) {
    case 1: return gemm<1, kRows>(x_q, plane, w, row_bytes, acc, acc_stride);
    case 2: return gemm<2, kRows>(x_q, plane, w, row_bytes, acc, acc_stride);
    case 3: return gemm<3, kRows>(x_q, plane, w, row_bytes, acc, acc_stride);
    default: return gemm<4, kRows>(x_q, plane, w, row_bytes, acc, acc_stride);
  }
}

void matmul(const int8_t* x_q, int64_t m, int64_t plane, const uint8_t* w, int64_t n, int64_t row_bytes, int32_t* acc,
            int64_t acc_stride) {
  int64_t row = 0;
  for (; row + 4 <= n; row += 4) tile<4>(x_q, m, plane, w + row * row_bytes, row_bytes, acc + row, acc_stride);
  for (; row < n; ++row) tile<1>(x_q, m, plane, w + row * row_bytes, row_bytes, acc + row, acc_stride);
}

}  // namespace

constinit const Kernel kNeonDotprod{
    "neon_dotprod", kFeatureNeon | kFeatureNeonDotprod, 4, absmax_bits, quantize, matmul, store};

}  // namespace bitlab::cpu
