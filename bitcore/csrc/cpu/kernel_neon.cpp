// NEON, the instructions that every 64-bit Arm CPU has. Compiled with its own flags (ISA_FLAGS in build_extensions.py):
// no static constructor, no STL, and nothing but the table has external linkage.
//
// One step takes 16 bytes of a weight row. smlal and smlal2 multiply codes with activations and add them to 8 lanes of
// int16: 2 products of at most max_code * 128 a lane and plane. The sums are widened to int32 before they could pass
// 2**15: after 15 steps in 2bit, 12 in base3, 4 in int4 (30,720 each). Two products of int8 may be 2**15 already, so
// they are widened one by one (smull, sadalp).
//
// Tiles of 2 rows x up to 4 vectors. Per 256 weights (2bit): 4 loads, 12 shifts, 16 masks; and for each vector 16 loads
// of x_q and 32 smlal.
#include "cpu_features.h"
#include "neon_codes.h"

namespace bitlab::cpu {
namespace {

template <class>
constexpr int rows_at_once(int) {
  return 2;
}

template <class Codes, int kVectors, int kRows>
INLINE void multiply_small_codes(const Product& p, const int8_t* x_q, const uint8_t* w, int32_t* acc) {
  constexpr int64_t kBlock = 32767 / (Codes::kPlanes * 2 * Codes::kMaxCode * 128) * kStep;
  int32x4_t total[kVectors][kRows] = {};
  for (int64_t begin = 0; begin < p.bytes; begin += kBlock) {
    const int64_t end = begin + kBlock < p.bytes ? begin + kBlock : p.bytes;
    int16x8_t sum[kVectors][kRows] = {};
    for_each_step<Codes>(begin, end, [&](int64_t byte, const auto& load_weights) __attribute__((always_inline)) {
      UNROLL for (int r = 0; r < kRows; ++r) {
        Codes decoder{load_weights(w + r * p.row_stride + byte)};
        UNROLL for (int j = 0; j < Codes::kPlanes; ++j) {
          const int8x16_t codes = decoder.next(j);
          UNROLL for (int v = 0; v < kVectors; ++v) {
            const int8x16_t x = vld1q_s8(x_q + v * p.vector_stride + j * p.plane + byte);
            sum[v][r] = vmlal_high_s8(vmlal_s8(sum[v][r], vget_low_s8(codes), vget_low_s8(x)), codes, x);
          }
        }
      }
    });
    UNROLL for (int v = 0; v < kVectors; ++v) {
      UNROLL for (int r = 0; r < kRows; ++r)
        total[v][r] = vpadalq_s16(total[v][r], sum[v][r]);
    }
  }
  UNROLL for (int v = 0; v < kVectors; ++v) {
    UNROLL for (int r = 0; r < kRows; ++r)
      acc[v * p.acc_stride + r] = vaddvq_s32(total[v][r]);
  }
}

template <int kVectors, int kRows>
INLINE void multiply_int8(const Product& p, const int8_t* x_q, const uint8_t* w, int32_t* acc) {
  int32x4_t sum[kVectors][kRows] = {};
  for_each_step<Int8>(0, p.bytes, [&](int64_t byte, const auto& load_weights) __attribute__((always_inline)) {
    UNROLL for (int r = 0; r < kRows; ++r) {
      const int8x16_t codes = Int8{load_weights(w + r * p.row_stride + byte)}.next(0);
      UNROLL for (int v = 0; v < kVectors; ++v) {
        const int8x16_t x = vld1q_s8(x_q + v * p.vector_stride + byte);
        sum[v][r] = vpadalq_s16(sum[v][r], vmull_s8(vget_low_s8(codes), vget_low_s8(x)));
        sum[v][r] = vpadalq_s16(sum[v][r], vmull_high_s8(codes, x));
      }
    }
  });
  UNROLL for (int v = 0; v < kVectors; ++v) {
    UNROLL for (int r = 0; r < kRows; ++r)
      acc[v * p.acc_stride + r] = vaddvq_s32(sum[v][r]);
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

constinit const Kernel kNeon = whole_kernel("neon", kFeatureNeon, 0);

}  // namespace bitlab::cpu
