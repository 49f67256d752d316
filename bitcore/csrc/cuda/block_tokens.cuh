// The few tokens of a call that every block of decode.cu quantizes itself; a single one, where that is asked for, it
// normalizes first.
#pragma once

#include "row_norm.cuh"

namespace bitlab::cuda {

constexpr int kWarps = 8, kThreads = 32 * kWarps;  // of a block
constexpr int kColumns = 8;
constexpr int kMostTokens = 4;  // that a block quantizes itself

// What the block knows of its columns; absmax by token and sums by column of the warps where it quantizes itself.
struct Columns {
  float scale[kColumns];  // by token
  int sum[kColumns];
  uint32_t absmax[kMostTokens][kWarps];
  int warp_sum[kWarps][kMostTokens > kFloatDigits ? kMostTokens : kFloatDigits];
  double square_sum[kWarps];
};

// A row of at most kMost values, spread over the threads of a block: each takes words threadIdx.x, + kThreads, ... of
// 4P values.
template <Format kFormat, int kMost>
struct BlockRow {
  using Layout = Chunk<kFormat>;
  static constexpr int kCount = 4 * Layout::kPerByte;
  static constexpr int kRounds = (kMost - 1) / (kThreads * kCount) + 1;

  uint32_t pairs[kRounds][kCount / 2];

  __device__ __forceinline__ static int first_of(int round) {
    const int word = round * kThreads + static_cast<int>(threadIdx.x);
    return word / 16 * Layout::kWeights + (word % 4 * 4 + word / 4 % 4) * kCount;
  }

  __device__ __forceinline__ void load(const void* row, int64_t k) {
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int k0 = first_of(round);
      load_pairs<kCount>(row, k0, row != nullptr && k0 < k, pairs[round]);
    }
  }

  __device__ __forceinline__ void store(void* row, int64_t k) const {
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      auto* to = reinterpret_cast<uint2*>(static_cast<uint16_t*>(row) + first_of(round));
#pragma unroll
      for (int i = 0; i < kCount / 4; ++i)
        if (first_of(round) < k) to[i] = {pairs[round][2 * i], pairs[round][2 * i + 1]};
    }
  }
};

// At most kTokens tokens that every block quantizes itself.
template <Format kFormat, int kMost, int kTokens = 1>
struct BlockTokens {
  using Row = BlockRow<kFormat, kMost>;
  using Layout = typename Row::Layout;
  static constexpr int kCount = Row::kCount, kRounds = Row::kRounds;

  Row rows[kTokens];

  __device__ __forceinline__ void load(const Linear& linear) {
    const auto* x = static_cast<const uint16_t*>(linear.x);
#pragma unroll
    for (int token = 0; token < kTokens; ++token)
      rows[token].load(token < linear.m ? x + token * linear.x_stride : nullptr, linear.k);
  }

  // All threads of the block. q, of `tokens` * kDigits columns, is complete after the next barrier. What takes long but
  // few instructions is done for all tokens side by side.
  template <int kDigits>
  __device__ __forceinline__ void quantize(Dtype dtype, int tokens, int words, int8_t* q, Columns& columns) {
    constexpr int kOwn = kTokens * kDigits;  // columns
    static_assert(kTokens * kWarps <= 32);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t largest[kTokens] = {};
#pragma unroll
    for (int token = 0; token < kTokens; ++token)
#pragma unroll
      for (int round = 0; round < kRounds; ++round)
        if (kTokens == 1 || token < tokens)
          largest[token] = max(largest[token], absmax_bits(rows[token].pairs[round], dtype));
#pragma unroll
    for (int token = 0; token < kTokens; ++token) largest[token] = warp_max(largest[token]);
#pragma unroll
    for (int token = 0; token < kTokens; ++token)
      if (lane == token) columns.absmax[token][warp] = largest[token];
    __syncthreads();
    // Eight lanes for each token, one for each warp.
    const int token_of_lane = lane / kWarps % kTokens;
    uint32_t of_token = columns.absmax[token_of_lane][lane % kWarps];
    if constexpr (kTokens == 1) {
      of_token = warp_max(of_token);
    } else {
#pragma unroll
      for (int other = 1; other < kWarps; other *= 2)
        of_token = max(of_token, __shfl_xor_sync(0xffffffffu, of_token, other));
    }
    const Quantizer of_lane = quantizer_of(of_token, kDigits);
    // By the last warp, which of short rows has nothing to quantize.
    if (warp == kWarps - 1 && lane % kWarps == 0 && lane < kTokens * kWarps)
      columns.scale[token_of_lane] = scale_of(of_token, kDigits);
    int sums[kOwn] = {};
#pragma unroll
    for (int token = 0; token < kTokens; ++token) {
      if (kTokens > 1 && token >= tokens) break;
      Quantizer quantizer = of_lane;
      if constexpr (kTokens > 1) {
        quantizer.factor = __shfl_sync(0xffffffffu, of_lane.factor, token * kWarps);
        quantizer.finite = is_finite(__shfl_sync(0xffffffffu, of_token, token * kWarps));
      }
      int of_digits[kDigits] = {};
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        const int word = round * kThreads + static_cast<int>(threadIdx.x);
        if (word >= words) break;
        float values[kCount];
        to_floats<kCount>(rows[token].pairs[round], dtype, values);
        uint32_t codes[kDigits][Layout::kPerByte];
        quantize_share<Layout::kPerByte>(values, quantizer, codes, of_digits);
        const int r0 = word / 16 * Layout::kHalfSteps + word / 4 % 4 * Layout::kPerByte;
        const int quad_bytes = (kTokens > 1 ? tokens : 1) * kDigits * 64;
#pragma unroll
        for (int d = 0; d < kDigits; ++d) {
          int8_t* to = q + (token * kDigits + d) * 64 + word % 4 * 16;
          if constexpr (Layout::kPerByte == 4) {
            *reinterpret_cast<uint4*>(to + r0 / 4 * quad_bytes) = {codes[d][0], codes[d][1], codes[d][2], codes[d][3]};
          } else {
#pragma unroll
            for (int i = 0; i < Layout::kPerByte; ++i)
              *reinterpret_cast<uint32_t*>(to + (r0 + i) / 4 * quad_bytes + (r0 + i) % 4 * 4) = codes[d][i];
          }
        }
      }
#pragma unroll
      for (int d = 0; d < kDigits; ++d) sums[token * kDigits + d] = of_digits[d];
    }
#pragma unroll
    for (int column = 0; column < kOwn; ++column) sums[column] = warp_sum(sums[column]);
#pragma unroll
    for (int column = 0; column < kOwn; ++column)
      if (lane == column) columns.warp_sum[warp][column] = sums[column];
  }

  // The one token becomes the RowNorm of what was loaded. All threads of the block; the first block writes norm.values.
  template <Dtype kDtype>
  __device__ __forceinline__ void normalize_as(const RowNorm& norm, const Row& others, const Row& weights,
                                               Columns& columns) {
    auto& pairs = rows[0].pairs;
    double sum = 0.0;
    float values[kRounds][kCount];
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      float other[kCount];
      to_floats<kCount>(pairs[round], kDtype, values[round]);
      to_floats<kCount>(others.pairs[round], kDtype, other);
      apply_source<kDtype>(norm.source, other, values[round]);
      sum += square_sum(values[round]);
      to_pairs<kDtype, kCount>(values[round], pairs[round]);
    }
    if (norm.values != nullptr && blockIdx.x == 0) rows[0].store(norm.values, norm.n);
    if (norm.weight != nullptr) {
      sum = warp_sum(sum);
      if (threadIdx.x % 32 == 0) columns.square_sum[threadIdx.x / 32] = sum;
      __syncthreads();
      const float scale = norm_scale(warp_sum(threadIdx.x % 32 < kWarps ? columns.square_sum[threadIdx.x % 32] : 0.0),
                                     norm.n, norm.eps);
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        float weight[kCount];
        to_floats<kCount>(weights.pairs[round], kDtype, weight);
        normalize<kDtype>(scale, weight, values[round]);
        to_pairs<kDtype, kCount>(values[round], pairs[round]);
      }
    }
  }
};

}  // namespace bitlab::cuda
