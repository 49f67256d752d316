// From the sums in a warpgroup's registers to outputs in memory: for two-byte outputs of one block through a transposed
// copy in shared memory, so that memory is written 16 bytes at a time; else as int32 sums in shared memory, where those
// of all blocks of a cluster and all digits of a token meet.
#pragma once

#include "activations.cuh"
#include "hopper_block.cuh"
#include "outputs.h"
#include "weight_stages.cuh"
#include "wgmma.cuh"

namespace bitlab::cuda {
namespace {

// Of row n, without a load where there is none.
__device__ __forceinline__ float bias_of(const Weight& weight, int64_t n) {
  return weight.bias == nullptr ? -0.0f : load_float(weight.bias, weight.bias_dtype, n);  // y + -0.0 is y
}

// What a sum of codes becomes, but for the bias.
template <Format kFormat>
__device__ __forceinline__ float output_of(int sum, int zero, int column_sum, float token_scale, float row_scale) {
  return __fmul_rn(static_cast<float>((sum >> high_shift(kFormat)) - zero * column_sum),
                   __fmul_rn(token_scale, row_scale));
}

// A warpgroup's outputs in shared memory: for each row tile [columns][64 rows] of two bytes, swizzled as tensor maps
// understand it, without bank conflicts.
constexpr uint32_t kColumnBytes = 128;
template <int kColumns, int kRowTiles>
constexpr uint32_t kOutputBytes = kRowTiles * kColumns * kColumnBytes;

// Of rows 8 * eight to 8 * eight + 7 of a row tile.
__device__ __forceinline__ uint32_t place_of_eight(int column, int eight) {
  return column * kColumnBytes + (eight ^ column % 8) * 16;
}

__device__ __forceinline__ uint32_t pair_of(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t pair_of(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Columns of outputs that are written while the next are computed; the last may be fewer.
template <int kColumns>
constexpr int kSlice = kColumns > 64 ? 32 : 16;

// Calls visit(whether `weight` has neither bias nor zero points, as a constant).
template <Outputs kOutputs, typename Visit>
__device__ __forceinline__ void visit_plain(const Weight& weight, const Visit& visit) {
  if constexpr (kOutputs != Outputs::kAny) {
    visit(std::true_type());
  } else if (weight.bias == nullptr && weight.zero_point == nullptr) {
    visit(std::true_type());
  } else {
    visit(std::false_type());
  }
}

// This warp's first sums as outputs of two bytes, into shared memory; calls `complete_sums` when all else is at hand,
// and `write` behind each slice of columns. kPlain: of a weight without bias and zero points. first_row has the
// caller's type: cut to an int, that of hopper_turns.cu makes ptxas order its products more slowly.
template <Format kFormat, int kColumns, int kRowTiles, bool kPlain, typename Value, typename Sum, size_t kSums,
          typename OfBlock, typename Complete, typename Write>
__device__ __forceinline__ void stage_outputs(const Weight& weight, auto first_row, const Sum (&sums)[kRowTiles][kSums],
                                              const OfBlock& factors, uint32_t outputs, const Complete& complete_sums,
                                              Write write) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float row_scale[2 * kRowTiles], row_bias[2 * kRowTiles];
  int zero[2 * kRowTiles];
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) {
    const int row = warp / 4 * 64 * kRowTiles + i / 2 * 64 + warp % 4 * 16 + i % 2 * 8 + lane / 4;
    const int64_t n = min(static_cast<int64_t>(first_row + row), weight.n - 1);
    row_scale[i] = factors.row_scale[row];
    if constexpr (!std::is_same_v<Sum, int>) row_scale[i] *= 1 / pair_scale(kFormat);
    row_bias[i] = bias_of(weight, n);
    zero[i] = kPlain ? code_of_zero(kFormat) : zero_of(weight, kFormat, n, 0);
  }
  const int matrix = lane / 8 % (2 * kRowTiles);  // rows +0 and +8 of the row tiles
  uint32_t to = outputs + matrix / 2 * kColumns * kColumnBytes + place_of_eight(lane % 8, warp % 4 * 2 + matrix % 2);
  float2 scale;
  int2 sum;
  const auto load = [&](int j) {
    const int column = 8 * j + lane % 4 * 2;
    scale = *reinterpret_cast<const float2*>(factors.token_scale + column);
    sum = *reinterpret_cast<const int2*>(factors.column_sum + column);
  };
  if constexpr (std::is_same_v<Sum, int>) load(0);
  complete_sums();
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    uint32_t pairs[2 * kRowTiles];
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      const Sum sum0 = sums[i / 2][4 * j + i % 2 * 2], sum1 = sums[i / 2][4 * j + i % 2 * 2 + 1];
      float value0, value1;
      if constexpr (std::is_same_v<Sum, int>) {
        value0 = output_of<kFormat>(sum0, zero[i], sum.x, scale.x, row_scale[i]);
        value1 = output_of<kFormat>(sum1, zero[i], sum.y, scale.y, row_scale[i]);
      } else {
        value0 = __fmul_rn(sum0, row_scale[i]);
        value1 = __fmul_rn(sum1, row_scale[i]);
      }
      if constexpr (!kPlain) value0 = __fadd_rn(value0, row_bias[i]), value1 = __fadd_rn(value1, row_bias[i]);
      pairs[i] = pair_of(value0, value1, Value());
    }
    // Not behind the store, where the compiler leaves them to wait.
    if constexpr (std::is_same_v<Sum, int>)
      if (j + 1 < kColumns / 8) load(j + 1);
    store_transposed(to, pairs);
    to += 8 * kColumnBytes;
    if ((8 * j + 8) % kSlice<kColumns> == 0 || 8 * j + 8 == kColumns) write();
  }
}

// Eight outputs of two bytes: 16 aligned bytes where `whole`, else the first `count` of them one by one.
__device__ __forceinline__ void write_eight(uint16_t* to, const Words<4>& v, bool whole, int count) {
  if (whole) {
    // Not a plain store, of which the compiler makes four: it joins them with those of the other branch.
    __stwb(reinterpret_cast<uint4*>(to), uint4{v.word[0], v.word[1], v.word[2], v.word[3]});
  } else {
#pragma unroll
    for (int b = 0; b < 8; ++b)
      if (b < count) to[b] = static_cast<uint16_t>(v.word[b / 2] >> b % 2 * 16);
  }
}

// Brings what stage_outputs left to memory: rows from `row` on of the columns from `token` on. A warpgroup.
template <Outputs kOutputs, int kColumns, int kRowTiles>
struct OutputWriter {
  static constexpr int kVectors = 64 * kRowTiles / 8, kAtOnce = 128 / kVectors;  // of 16 bytes in a column; columns
  static_assert(kAtOnce % 8 == 0);
  int left, column, columns;
  int64_t stride;
  bool whole;
  uint16_t* to;
  uint32_t from;

  __device__ __forceinline__ OutputWriter(const Weight& weight, int row, int token, int m, uint32_t outputs)
      : stride(weight.n) {
    const int vector = threadIdx.x % 128 % kVectors, n = row + vector * 8;
    column = threadIdx.x % 128 / kVectors;
    left = static_cast<int>(weight.n) - n;
    columns = left <= 0 ? 0 : min(m - token, kColumns);
    // Of two row tiles the compiler computes all outputs first, if nothing branches, and then they lie in memory.
    whole = (kOutputs != Outputs::kAny && kRowTiles == 1) || has_whole_eights(weight);
    to = static_cast<uint16_t*>(weight.y) + (token + column) * stride + n;
    from = outputs + vector / 8 * kColumns * kColumnBytes + place_of_eight(column, vector % 8);
  }

  // The next slice.
  __device__ __forceinline__ void write() {
#pragma unroll
    for (int i = 0; i < kSlice<kColumns> / kAtOnce; ++i, column += kAtOnce) {
      if (column >= columns) return;
      write_eight(to, load_shared_words(from), whole, left);
      to += kAtOnce * stride;
      from += kAtOnce * kColumnBytes;
    }
  }
};

// Writes the outputs of what a block has of the sums, at `sums` [columns][kStride]: a.own times eight columns, from
// the tile's eight `first_own` on. A thread writes four rows of a token.
template <Format kFormat, int kRows, int kStride, typename OfBlock>
__device__ __forceinline__ void write_sums(const Hopper& a, const Weight& weight, int64_t first_row,
                                           int64_t first_token, int first_own, const OfBlock& factors, uint32_t sums) {
  constexpr int kRowLanes = kRows / 4, kTokens = 128 * hopper_groups(kRows) / kRowLanes;  // tokens at once
  const int digits = a.quantized.digits, row = threadIdx.x % kRowLanes * 4;
  const int64_t n = first_row + row, left = a.linear.m - first_token;
  const int of_tile = left < a.quantized.tile_tokens ? static_cast<int>(left) : a.quantized.tile_tokens;
  const int own_token = first_own / digits * 8, tokens = min(a.own / digits * 8, of_tile - own_token);
  if (n >= weight.n) return;
  const int rows = weight.n - n < 4 ? static_cast<int>(weight.n - n) : 4;
  float row_bias[4];
  int zero[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    row_bias[j] = bias_of(weight, min(n + j, weight.n - 1));
    zero[j] = zero_of(weight, kFormat, min(n + j, weight.n - 1), 0);
  }
  for (int i = threadIdx.x / kRowLanes; i < tokens; i += kTokens) {
    const int token = own_token + i;
    int total[4][kFloatDigits];
#pragma unroll
    for (int d = 0; d < kFloatDigits; ++d) {
      if (d >= digits) break;
      const Words<4> of_rows = load_shared_words(sums + ((i * digits + d) * kStride + row) * 4);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        total[j][d] = (static_cast<int>(of_rows.word[j]) >> high_shift(kFormat)) -
                      zero[j] * factors.column_sum[token * digits + d];
    }
    const float scale = factors.token_scale[token];
    float values[4];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      values[j] =
          __fadd_rn(__fmul_rn(product_of(total[j], digits), __fmul_rn(scale, factors.row_scale[row + j])), row_bias[j]);
    store_floats(weight.y, a.linear.dtype, (first_token + token) * weight.n + n, values, rows);
  }
}

}  // namespace
}  // namespace bitlab::cuda
