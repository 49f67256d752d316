// NEON, the instructions that every 64-bit Arm CPU has. Compiled with its own flags (ISA_FLAGS in build_extensions.py):
// no static constructor, no STL, and nothing but the table has external linkage.
//
// One step takes 16 bytes of a weight row, 64 weights. smlal and smlal2 multiply codes with activations, at most 2 *
// 128 = 256, and add them to 8 lanes of int16: 2 products a lane and plane, 8 a step, at most 2,048. After 15 steps the
// sums are widened to int32: 15 * 2,048 = 30,720 < 32,768.
//   Instructions per 256 weights: 4 loads, 12 shifts, 12 masks; and for each token 16 loads of x_q and 32 smlal.
#include "cpu_features.h"
#include "neon_common.h"

namespace bitlab::cpu {
namespace {

inline int16x8_t add_products(int16x8_t sum, int8x16_t codes, const int8_t* x) {
  const int8x16_t values = vld1q_s8(x);
  return vmlal_high_s8(vmlal_s8(sum, vget_low_s8(codes), vget_low_s8(values)), codes, values);
}

template <int kTokens, int kRows>
void gemm(const int8_t* x_q, int64_t plane, const uint8_t* w, int64_t row_bytes, int32_t* acc, int64_t acc_stride) {
  constexpr int64_t kSteps = 15;
  int32x4_t total[kTokens][kRows] = {};
  for (int64_t begin = 0; begin < row_bytes; begin += kSteps * kStep) {
    const int64_t end = begin + kSteps * kStep < row_bytes ? begin + kSteps * kStep : row_bytes;
    int16x8_t sum[kTokens][kRows] = {};
    for (int64_t byte = begin; byte < end; byte += kStep) {
      UNROLL for (int r = 0; r < kRows; ++r) {
        const uint8x16_t bytes = load_row(w + r * row_bytes, byte, row_bytes);
        const int8x16_t codes0 = codes_of<0>(bytes), codes1 = codes_of<1>(bytes);
        const int8x16_t codes2 = codes_of<2>(bytes), codes3 = codes_of<3>(bytes);
        UNROLL for (int t = 0; t < kTokens; ++t) {
          const int8_t* x = x_q + 4 * t * plane + byte;
          sum[t][r] = add_products(sum[t][r], codes0, x);
          sum[t][r] = add_products(sum[t][r], codes1, x + plane);
          sum[t][r] = add_products(sum[t][r], codes2, x + 2 * plane);
          sum[t][r] = add_products(sum[t][r], codes3, x + 3 * plane);
        }
      }
    }
    UNROLL for (int t = 0; t < kTokens; ++t) {
      UNROLL for (int r = 0; r < kRows; ++r)
        total[t][r] = vpadalq_s16(total[t][r], sum[t][r]);
    }
  }
  for (int t = 0; t < kTokens; ++t)
    for (int r = 0; r < kRows; ++r) acc[t * acc_stride + r] = vaddvq_s32(total[t][r]);
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
  for (; row + 2 <= n; row += 2) tile<2>(x_q, m, plane, w + row * row_bytes, row_bytes, acc + row, acc_stride);
  if (row < n) tile<1>(x_q, m, plane, w + row * row_bytes, row_bytes, acc + row, acc_stride);
}

}  // namespace

constinit const Kernel kNeon{"neon", kFeatureNeon, 4, absmax_bits, quantize, matmul, store};

}  // namespace bitlab::cpu
