// Tiles made of sdot, which adds 4 products to each of 4 int32 lanes. Included by files whose flags allow it.
#pragma once

#include "neon_codes.h"

namespace bitlab::cpu {
namespace {

template <class Codes, int kVectors, int kRows>
INLINE void multiply_by_dot(const Product& p, const int8_t* x_q, const uint8_t* w, int32_t* acc) {
  int32x4_t sum[kVectors][kRows] = {};
  for_each_step<Codes>(0, p.bytes, [&](int64_t byte, const auto& load_weights) __attribute__((always_inline)) {
    Codes decoder[kRows];
    UNROLL for (int r = 0; r < kRows; ++r)
      decoder[r] = {load_weights(w + r * p.row_stride + byte)};
    UNROLL for (int j = 0; j < Codes::kPlanes; ++j) {
      int8x16_t codes[kRows];
      UNROLL for (int r = 0; r < kRows; ++r)
        codes[r] = decoder[r].next(j);
      UNROLL for (int v = 0; v < kVectors; ++v) {
        const int8x16_t x = vld1q_s8(x_q + v * p.vector_stride + j * p.plane + byte);
        UNROLL for (int r = 0; r < kRows; ++r)
          sum[v][r] = vdotq_s32(sum[v][r], codes[r], x);
      }
    }
  });
  UNROLL for (int v = 0; v < kVectors; ++v) {
    UNROLL for (int r = 0; r < kRows; ++r)
      acc[v * p.acc_stride + r] = vaddvq_s32(sum[v][r]);
  }
}

}  // namespace
}  // namespace bitlab::cpu
