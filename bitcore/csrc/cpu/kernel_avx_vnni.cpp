// AVX-VNNI: vpdpbusd on 256 bits, for CPUs that have it without AVX-512. Compiled with its own flags (ISA_FLAGS in
// build_extensions.py): nothing here may run before dispatch.cpp has asked the CPU, so there is no static constructor,
// no STL, and nothing but the table has external linkage.
//
// One step takes 32 bytes of a weight row. Tiles of 4 rows x 1 vector or 2 rows x 2 to 4 vectors, with one accumulator
// each: what 16 registers hold. Per 256 weights and v vectors (2bit): 2 loads, 6 vpsrlw, 8 vpand, and for each vector
// 8 vpdpbusd from memory.
#if !defined(__AVX2__) || !defined(__AVXVNNI__)
#error "kernel_avx_vnni.cpp needs -mavx2 -mavxvnni: see ISA_FLAGS in build_extensions.py"
#endif
#include "avx2_codes.h"
#include "cpu_features.h"

namespace bitlab::cpu {
namespace {

template <class>
constexpr int rows_at_once(int vectors) {
  return vectors == 1 ? 4 : 2;
}

template <class Codes, int kVectors, int kRows>
void multiply(const Product& p, const int8_t* x_q, const uint8_t* w, int32_t* acc) {
  __m256i sum[kVectors][kRows] = {};
  for_each_step(0, p.bytes, [&](int64_t byte, const auto& load_weights) __attribute__((always_inline)) {
    UNROLL for (int r = 0; r < kRows; ++r) {
      prefetch(w + kRows * (p.row_stride + byte) + kStep * r);
      Codes decoder{load_weights(w + r * p.row_stride + byte)};
      UNROLL for (int j = 0; j < Codes::kPlanes; ++j) {
        const __m256i codes = decoder.next(j);
        UNROLL for (int v = 0; v < kVectors; ++v) {
          const __m256i x = load_x(x_q + v * p.vector_stride + j * p.plane + byte);
          sum[v][r] = _mm256_dpbusd_avx_epi32(sum[v][r], codes, x);
        }
      }
    }
  });
  UNROLL for (int v = 0; v < kVectors; ++v) {
    UNROLL for (int r = 0; r < kRows; ++r)
      acc[v * p.acc_stride + r] = sum_of(sum[v][r]);
  }
}

}  // namespace
}  // namespace bitlab::cpu

#include "tiles.h"
#include "whole_kernel.h"

namespace bitlab::cpu {

constinit const Kernel kAvxVnni = whole_kernel("avx_vnni", kFeatureAvx2 | kFeatureAvxVnni, 128);

}  // namespace bitlab::cpu
