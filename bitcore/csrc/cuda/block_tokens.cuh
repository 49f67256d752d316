// The few tokens of a call that every block of decode.cu quantizes itself; a single one, where that is asked for, it
// normalizes first.
#pragma once

#include "kernels.h"
#include "row_norm.cuh"
#include "tensor_core.cuh"

namespace bitlab::cuda {

constexpr int kWarps = 8, kThreads = 32 * kWarps;  // of a group, of which a block has one or two
constexpr int kMostGroups = 2;
constexpr int kColumns = kDecodeColumns;

// Where a block has its int8 activations from.
enum class Source {
  kWorkspace,
  kLong,    // the block quantizes the one token
  kShort,   // of at most kMostShort weights
  kNormed,  // and normalizes it first
  kTwo,     // the block quantizes two tokens
  kFour,    // or up to four
};

template <Source kSource>
constexpr int kMostTokens = kSource == Source::kTwo    ? 2
                            : kSource == Source::kFour ? 4
                                                       : 1;

// Two groups of warps share the work of quantizing; where that is little, a group alone is ready sooner.
template <Source kSource>
constexpr int kGroups = kSource == Source::kLong || kMostTokens<kSource> > 1 ? kMostGroups : 1;

// Weights of a token. Of a normalized one each thread has one word: for more, a launch of its own is faster.
constexpr int kMostShort = kThreads * 16, kMostLong = 12288, kMostOfTwo = 8192, kMostOfFour = 4096;
template <Source kSource>
constexpr int kMostWeights = kSource == Source::kLong   ? kMostLong
                             : kSource == Source::kTwo  ? kMostOfTwo
                             : kSource == Source::kFour ? kMostOfFour
                                                        : kMostShort;

// What the block knows of its columns; absmax and sums by warp where it quantizes itself.
struct Columns {
  float scale[kColumns];           // by token
  int sum[kMostGroups][kColumns];  // of each group its own
  uint32_t absmax[kMostGroups * kWarps];
  int warp_sum[kMostGroups * kWarps][kFloatDigits];
  double square_sum[kWarps];
};

// A row of at most kMost values, spread over kOwn threads: thread i of them takes words i, i + kOwn, ... of 4P values.
template <Format kFormat, int kMost, int kOwn>
struct BlockRow {
  using Layout = Chunk<kFormat>;
  static constexpr int kCount = 4 * Layout::kPerByte;
  static constexpr int kRounds = (kMost - 1) / (kOwn * kCount) + 1, kStep = kOwn / 16 * Layout::kWeights;

  uint32_t pairs[kRounds][kCount / 2];

  // This thread's first value of the row.
  __device__ __forceinline__ static int first() {
    const uint32_t word = threadIdx.x % kOwn;
    return static_cast<int>(word / 16 * Layout::kWeights + (word % 4 * 4 + word / 4 % 4) * kCount);
  }

  // From its first value on, `left` before the row ends.
  __device__ __forceinline__ void load(const uint16_t* from, int left) {
#pragma unroll
    for (int round = 0; round < kRounds; ++round)
      load_pairs<kCount>(from, round * kStep, round * kStep < left, pairs[round]);
  }

  __device__ __forceinline__ void store(uint16_t* to, int left) const {
#pragma unroll
    for (int round = 0; round < kRounds; ++round)
#pragma unroll
      for (int i = 0; i < kCount / 4; ++i)
        if (round * kStep < left)
          reinterpret_cast<uint2*>(to + round * kStep)[i] = {pairs[round][2 * i], pairs[round][2 * i + 1]};
  }
};

// The tokens that every block quantizes itself: each is that of neighbouring warps.
template <Format kFormat, Source kSource>
struct BlockTokens {
  static constexpr int kTokens = kMostTokens<kSource>, kOwn = kGroups<kSource> * kThreads / kTokens;  // threads of one
  using Row = BlockRow<kFormat, kMostWeights<kSource>, kOwn>;
  using Layout = typename Row::Layout;
  static constexpr int kCount = Row::kCount, kRounds = Row::kRounds, kOwnWarps = kOwn / 32;

  const uint16_t* from;
  int left;  // values of its token behind `from`
  Row row;

  // Finds this thread's values, for load().
  __device__ __forceinline__ explicit BlockTokens(const Linear& linear) {
    const int token = static_cast<int>(threadIdx.x) / kOwn, first = Row::first();
    from = in_register(static_cast<const uint16_t*>(linear.x) + (kTokens == 1 ? 0 : token * linear.x_stride) + first);
    left = in_register(kTokens == 1 || token < linear.m ? static_cast<int>(linear.k) - first : 0);
  }

  __device__ __forceinline__ void load() { row.load(from, left); }

  // All threads of the block. q, of `tokens` * kDigits columns, is complete after the next barrier.
  template <int kDigits, typename Meanwhile>
  __device__ __forceinline__ void quantize(Dtype dtype, int tokens, int words, int8_t* q, Columns& columns,
                                           const Meanwhile& meanwhile) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, token = warp / kOwnWarps;
    uint32_t largest = 0;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) largest = max(largest, absmax_bits(row.pairs[round], dtype));
    largest = warp_max(largest);
    if (lane == 0) columns.absmax[warp] = largest;
    meanwhile();
    __syncthreads();
    largest = warp_max(columns.absmax[token * kOwnWarps + lane % kOwnWarps]);
    const Quantizer quantizer = quantizer_of(largest, kDigits);
    // By the last warp, which of short rows has nothing to quantize.
    if (warp % kOwnWarps == kOwnWarps - 1 && lane == 0) columns.scale[token] = scale_of(largest, kDigits);
    int sums[kDigits] = {};
    const int quad_bytes = (kTokens > 1 ? tokens : 1) * kDigits * 64;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int word = round * kOwn + static_cast<int>(threadIdx.x) % kOwn;
      if (word >= words || (kTokens > 1 && token >= tokens)) break;
      float values[kCount];
      to_floats<kCount>(row.pairs[round], dtype, values);
      uint32_t codes[kDigits][Layout::kPerByte];
      quantize_share<Layout::kPerByte>(values, quantizer, codes, sums);
      const int r0 = word / 16 * Layout::kHalfSteps + word / 4 % 4 * Layout::kPerByte;
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
    for (int d = 0; d < kDigits; ++d) sums[d] = warp_sum(sums[d]);
#pragma unroll
    for (int d = 0; d < kDigits; ++d)
      if (lane == d) columns.warp_sum[warp][d] = sums[d];
  }

  // Of q, after that barrier.
  template <int kDigits>
  __device__ __forceinline__ static int sum_of(const Columns& columns, int column) {
    int total = 0;
#pragma unroll
    for (int w = 0; w < kOwnWarps; ++w) total += columns.warp_sum[column / kDigits * kOwnWarps + w][column % kDigits];
    return total;
  }

  // The one token becomes the RowNorm of what was loaded. All threads of the block; the first block writes norm.values.
  template <Dtype kDtype>
  __device__ __forceinline__ void normalize_as(const RowNorm& norm, const Row& others, const Row& weights,
                                               Columns& columns) {
    auto& pairs = row.pairs;
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
    if (norm.values != nullptr && blockIdx.x == 0) row.store(static_cast<uint16_t*>(norm.values) + Row::first(), left);
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
