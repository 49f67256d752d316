// From the sums in a warpgroup's registers to outputs in memory: for two-byte outputs of one block through a transposed
// copy in shared memory, so that memory is written 16 bytes at a time; else as int32 sums in shared memory, where those
// of all blocks of a cluster and all digits of a token meet.
#pragma once

#include "activations.cuh"
#include "kernels.h"
#include "rows.cuh"
#include "weight_stages.cuh"
#include "wgmma.cuh"

namespace bitlab::cuda {
namespace {

constexpr int kGroups = 2, kThreads = 128 * kGroups;
constexpr int kMostStages = 10;
constexpr int kMostSplits = 8;

struct Hopper {
  Linear linear;
  Quantized quantized;
  RowTiles tiles;
  int64_t row_bytes;
  int stages;  // of activations
  int token_tiles;
};

// Bytes of a column of a warpgroup's outputs in shared memory, without bank conflicts.
template <int kRowTiles>
constexpr uint32_t kColumnBytes = 64 * kRowTiles * 2 + 16;

__device__ __forceinline__ uint32_t pair_of(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t pair_of(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// This warp's sums as outputs of two bytes, into shared memory [columns][rows of the warpgroup].
template <Format kFormat, int kColumns, int kRowTiles, typename Value, typename Sum>
__device__ __forceinline__ void stage_outputs(const Hopper& a, const Weight& weight, int64_t warp_row,
                                              const Sum (&sums)[kRowTiles][kColumns / 2], const float* column_scale,
                                              const int* column_sum, uint32_t outputs) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float row_scale[2 * kRowTiles], row_bias[2 * kRowTiles];
  int zero[2 * kRowTiles];
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) {
    const int64_t n = min(warp_row + i / 2 * 64 + i % 2 * 8 + lane / 4, weight.n - 1);
    row_scale[i] = weight.scale[n * weight.scale_stride];
    row_bias[i] = weight.bias == nullptr ? -0.0f : load_float(weight.bias, weight.bias_dtype, n);  // y + -0.0 is y
    zero[i] = zero_of(weight, kFormat, n, 0);
  }
  const int matrix = lane / 8 % (2 * kRowTiles);  // rows +0 and +8 of the row tiles
  uint32_t to = outputs + lane % 8 * kColumnBytes<kRowTiles> + (warp % 4 * 16 + matrix / 2 * 64 + matrix % 2 * 8) * 2;
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    const int column = 8 * j + lane % 4 * 2;
    float2 scale;
    int2 sum;
    if constexpr (std::is_same_v<Sum, int>) {
      scale = *reinterpret_cast<const float2*>(column_scale + column);
      sum = *reinterpret_cast<const int2*>(column_sum + column);
    }
    uint32_t pairs[2 * kRowTiles];
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      const Sum sum0 = sums[i / 2][4 * j + i % 2 * 2], sum1 = sums[i / 2][4 * j + i % 2 * 2 + 1];
      float value0, value1;
      if constexpr (std::is_same_v<Sum, int>) {
        value0 = __fmul_rn(static_cast<float>(sum0 - zero[i] * sum.x), __fmul_rn(scale.x, row_scale[i]));
        value1 = __fmul_rn(static_cast<float>(sum1 - zero[i] * sum.y), __fmul_rn(scale.y, row_scale[i]));
      } else {
        value0 = __fmul_rn(sum0, row_scale[i]);
        value1 = __fmul_rn(sum1, row_scale[i]);
      }
      pairs[i] = pair_of(__fadd_rn(value0, row_bias[i]), __fadd_rn(value1, row_bias[i]), Value());
    }
    store_transposed(to, pairs);
    to += 8 * kColumnBytes<kRowTiles>;
  }
}

// What stage_outputs left, to memory: rows from `row` on of the columns from `token` on. A warpgroup.
template <int kColumns, int kRowTiles>
__device__ __forceinline__ void write_outputs(const Weight& weight, int64_t row, int64_t token, int64_t m,
                                              uint32_t outputs) {
  constexpr int kVectors = 64 * kRowTiles / 8;  // of 16 bytes in a column
  const int vector = threadIdx.x % 128 % kVectors, column = threadIdx.x % 128 / kVectors;
  const int64_t n = row + vector * 8;
  if (n >= weight.n) return;
  const bool whole = weight.n % 8 == 0 && reinterpret_cast<uintptr_t>(weight.y) % 16 == 0;
  const int columns = m - token < kColumns ? static_cast<int>(m - token) : kColumns;
  auto* to = static_cast<uint16_t*>(weight.y) + (token + column) * weight.n + n;
  uint32_t from = outputs + column * kColumnBytes<kRowTiles> + vector * 16;
#pragma unroll 4
  for (int i = column; i < columns; i += 128 / kVectors) {
    const Words<4> v = load_shared_words(from);
    if (whole) {
      *reinterpret_cast<uint4*>(to) = {v.word[0], v.word[1], v.word[2], v.word[3]};
    } else {
#pragma unroll
      for (int b = 0; b < 8; ++b)
        if (n + b < weight.n) to[b] = static_cast<uint16_t>(v.word[b / 2] >> b % 2 * 16);
    }
    to += 128 / kVectors * weight.n;
    from += 128 / kVectors * kColumnBytes<kRowTiles>;
  }
}

// What a block writes.
struct Outputs {
  const Weight* weight;
  int64_t first_row, first_token;
  int split;
  const float* column_scale;
  const int* column_sum;
};

// Adds up the sums that the kSplits blocks of a cluster have at `sums`, [columns][kStride], and writes outputs. A
// thread writes four rows of a token; the blocks take turns at the tokens.
template <Format kFormat, int kRows, int kStride, int kSplits>
__device__ __forceinline__ void write_sums(const Hopper& a, const Outputs& outputs, uint32_t sums) {
  constexpr int kRowLanes = kRows / 4, kTokens = kThreads / kRowLanes;  // tokens at once
  const Weight& weight = *outputs.weight;
  const int digits = a.quantized.digits, row = threadIdx.x % kRowLanes * 4;
  const int64_t n0 = outputs.first_row + row, left = a.linear.m - outputs.first_token;
  const int tokens = left < a.quantized.tile_tokens ? static_cast<int>(left) : a.quantized.tile_tokens;
  if (n0 >= weight.n) return;
  float row_scale[4], row_bias[4];
  int zero[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t n = min(n0 + i, weight.n - 1);
    row_scale[i] = weight.scale[n * weight.scale_stride];
    row_bias[i] = weight.bias == nullptr ? -0.0f : load_float(weight.bias, weight.bias_dtype, n);  // y + -0.0 is y
    zero[i] = zero_of(weight, kFormat, n, 0);
  }
  const int rows = weight.n - n0 < 4 ? static_cast<int>(weight.n - n0) : 4;
  for (int token = outputs.split + kSplits * (threadIdx.x / kRowLanes); token < tokens; token += kSplits * kTokens) {
    int total[4][kFloatDigits];
#pragma unroll
    for (int d = 0; d < kFloatDigits; ++d) {
      if (d >= digits) break;
      const int column = token * digits + d;
      const uint32_t address = sums + (column * kStride + row) * 4;
      int4 parts[kSplits];
#pragma unroll
      for (int rank = 0; rank < kSplits; ++rank) parts[rank] = load_of_block(address, rank);
      const int column_sum = outputs.column_sum[column];
#pragma unroll
      for (int i = 0; i < 4; ++i) total[i][d] = -zero[i] * column_sum;
#pragma unroll
      for (int rank = 0; rank < kSplits; ++rank) {
        total[0][d] += parts[rank].x, total[1][d] += parts[rank].y;
        total[2][d] += parts[rank].z, total[3][d] += parts[rank].w;
      }
    }
    const float scale = outputs.column_scale[token * digits];
    const int64_t place = (outputs.first_token + token) * weight.n + n0;
    float values[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      values[i] = __fadd_rn(__fmul_rn(product_of(total[i], digits), __fmul_rn(scale, row_scale[i])), row_bias[i]);
    store_floats(weight.y, a.linear.dtype, place, values, rows);
  }
}

}  // namespace
}  // namespace bitlab::cuda
