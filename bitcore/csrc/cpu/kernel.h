// The table of plain functions that every CPU kernel fills in: no torch, no threads, no allocation.
//
// Sizes: M tokens, N out_features, K in_features. One plane is ceil(K / 4) bytes, padded to a multiple of 64.
//
//   weights     w   [N, ceil(K/4)] uint8   codes u = t + 1, four a byte, weight 4i + j in bits 2j+1:2j of byte i
//   activations x_q [M, 4, plane]  int8    value 4i + j at [j, i]; zeros behind the end; 64-byte aligned
//
// So (w[i] >> 2j) & 3 meets x_q[j][i] for 64 bytes at once, with one mask, and no byte of either is ever moved again.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace bitlab::cpu {

enum class Dtype : int { kFloat32, kBFloat16, kFloat16 };

constexpr int64_t kPlaneAlignment = 64;

struct Kernel {
  const char* name;    // also the name of the Python kernel
  uint64_t required;   // bits of cpu_features.h, all needed
  int64_t token_tile;  // most tokens in one call of matmul

  // The bits of max(abs(x[0..k))), a float32 with its sign cleared. As integers NaN > Inf > every finite value, so one
  // comparison with 0x7f800000 afterwards tells whether the row is finite.
  uint32_t (*absmax_bits)(const void* x, Dtype dtype, int64_t k);

  // x_q [4, plane] = saturate_int8(rint(x * inverse_scale)), rounded half to even, padded with zeros; returns the sum
  // of x_q.
  int32_t (*quantize)(const void* x, Dtype dtype, int64_t k, float inverse_scale, int8_t* x_q, int64_t plane);

  // acc[m * acc_stride + n] = sum over k of u[n][k] * x_q[m][k] modulo 2**32, for m <= token_tile tokens and n weight
  // rows.
  void (*matmul)(const int8_t* x_q, int64_t m, int64_t plane, const uint8_t* w, int64_t n, int64_t row_bytes,
                 int32_t* acc, int64_t acc_stride);

  // y[i] = float(acc[i] - x_sum) * (x_scale * w_scale[i * w_scale_step]) + bias[i], rounded to dtype. bias may be null.
  void (*store)(const int32_t* acc, int64_t n, int32_t x_sum, float x_scale, const float* w_scale, int64_t w_scale_step,
                const float* bias, void* y, Dtype dtype);
};

extern const Kernel kPortable;
#if defined(__x86_64__)
extern const Kernel kAvx2, kAvxVnni, kAvx512Vnni;
#elif defined(__aarch64__)
extern const Kernel kNeon, kNeonDotprod;
#endif

}  // namespace bitlab::cpu
