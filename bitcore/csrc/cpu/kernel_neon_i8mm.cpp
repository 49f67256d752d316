// NEON with the int8 matrix instructions of Armv8.6 (smmla). Compiled with its own flags (ISA_FLAGS in
// build_extensions.py): no static constructor, no STL, and nothing but the table has external linkage.
//
// smmla multiplies 2 rows of 8 int8 with 2 vectors of 8 int8 and adds the 4 dot products to the 4 int32 lanes:
//
//     codes  [row 0: 8 bytes | row 1: 8 bytes]
//     x      [vec 0: 8 bytes | vec 1: 8 bytes]     sum += [r0 v0, r0 v1, r1 v0, r1 v1]
//
// So it does twice the products of sdot. One step takes 16 bytes of 4 weight rows; two rows (vectors) are paired by
// trn1 and trn2 of their 64-bit halves. Tiles of 4 rows x 2 or 4 vectors; one vector, and rows left over, take sdot,
// and a third vector is done alone.
//   Per 256 weights (2bit): 4 loads, 12 shifts, 16 masks, 16 trn; and for a pair of vectors 16 smmla, 8 loads, 8 trn.
#if !defined(__ARM_FEATURE_DOTPROD) || !defined(__ARM_FEATURE_MATMUL_INT8)
#error "kernel_neon_i8mm.cpp needs -march=armv8.2-a+dotprod+i8mm: see ISA_FLAGS in build_extensions.py"
#endif
#include "cpu_features.h"
#include "neon_dot.h"

namespace bitlab::cpu {
namespace {

template <class>
constexpr int rows_at_once(int) {
  return 4;
}

INLINE int8x16_t lower_halves(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s64(vtrn1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

INLINE int8x16_t upper_halves(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s64(vtrn2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

template <class Codes, int kVectors>
INLINE void multiply_pairs(const Product& p, const int8_t* x_q, const uint8_t* w, int32_t* acc) {
  constexpr int kRowPairs = 2, kVectorPairs = kVectors / 2;
  int32x4_t sum[kVectorPairs][kRowPairs] = {};
  for_each_step<Codes>(0, p.bytes, [&](int64_t byte, const auto& load_weights) __attribute__((always_inline)) {
    Codes decoder[2 * kRowPairs];
    UNROLL for (int r = 0; r < 2 * kRowPairs; ++r)
      decoder[r] = {load_weights(w + r * p.row_stride + byte)};
    UNROLL for (int j = 0; j < Codes::kPlanes; ++j) {
      int8x16_t lower[kRowPairs], upper[kRowPairs];
      UNROLL for (int r = 0; r < kRowPairs; ++r) {
        const int8x16_t codes0 = decoder[2 * r].next(j), codes1 = decoder[2 * r + 1].next(j);
        lower[r] = lower_halves(codes0, codes1);
        upper[r] = upper_halves(codes0, codes1);
      }
      UNROLL for (int v = 0; v < kVectorPairs; ++v) {
        const int8_t* x = x_q + 2 * v * p.vector_stride + j * p.plane + byte;
        const int8x16_t x0 = vld1q_s8(x), x1 = vld1q_s8(x + p.vector_stride);
        const int8x16_t x_lower = lower_halves(x0, x1), x_upper = upper_halves(x0, x1);
        UNROLL for (int r = 0; r < kRowPairs; ++r) {
          sum[v][r] = vmmlaq_s32(vmmlaq_s32(sum[v][r], lower[r], x_lower), upper[r], x_upper);
        }
      }
    }
  });
  UNROLL for (int v = 0; v < kVectorPairs; ++v) {
    UNROLL for (int r = 0; r < kRowPairs; ++r) {
      int32_t* to = acc + 2 * v * p.acc_stride + 2 * r;
      to[0] = vgetq_lane_s32(sum[v][r], 0);
      to[p.acc_stride] = vgetq_lane_s32(sum[v][r], 1);
      to[1] = vgetq_lane_s32(sum[v][r], 2);
      to[p.acc_stride + 1] = vgetq_lane_s32(sum[v][r], 3);
    }
  }
}

template <class Codes, int kVectors, int kRows>
void multiply(const Product& p, const int8_t* x_q, const uint8_t* w, int32_t* acc) {
  if constexpr (kVectors == 1 || kRows == 1) {
    multiply_by_dot<Codes, kVectors, kRows>(p, x_q, w, acc);
  } else {
    multiply_pairs<Codes, kVectors>(p, x_q, w, acc);
    constexpr int kPaired = kVectors / 2 * 2;
    if constexpr (kPaired < kVectors) {
      multiply_by_dot<Codes, 1, kRows>(p, x_q + kPaired * p.vector_stride, w, acc + kPaired * p.acc_stride);
    }
  }
}

}  // namespace
}  // namespace bitlab::cpu

#include "tiles.h"
#include "whole_kernel.h"

namespace bitlab::cpu {

constinit const Kernel kNeonI8mm = whole_kernel("neon_i8mm", kFeatureNeon | kFeatureNeonDotprod | kFeatureNeonI8mm, 0);

}  // namespace bitlab::cpu
