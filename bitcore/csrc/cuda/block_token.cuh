// The one token of a call, which every block of decode.cu normalizes, where that is asked for, and quantizes itself.
#pragma once

#include "row_norm.cuh"

namespace bitlab::cuda {

constexpr int kWarps = 8, kThreads = 32 * kWarps;  // of a block
constexpr int kColumns = 8;

// What the block knows of its columns; absmax and sums of the warps where it quantizes itself.
struct Columns {
  float scale[kColumns];  // by token
  int sum[kColumns];
  uint32_t absmax[kWarps];
  int warp_sum[kWarps][kFloatDigits];
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

// The token that every block quantizes itself.
template <Format kFormat, int kMost>
struct BlockToken : BlockRow<kFormat, kMost> {
  using Row = BlockRow<kFormat, kMost>;
  using Layout = typename Row::Layout;
  using Row::kCount, Row::kRounds, Row::pairs;

  // All threads of the block. q is complete after the next barrier.
  template <int kDigits>
  __device__ __forceinline__ void quantize(Dtype dtype, int words, int8_t* q, Columns& columns) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t largest = 0;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) largest = max(largest, absmax_bits(pairs[round], dtype));
    largest = warp_max(largest);
    if (lane == 0) columns.absmax[warp] = largest;
    __syncthreads();
    largest = warp_max(columns.absmax[lane % kWarps]);
    const Quantizer quantizer = quantizer_of(largest, kDigits);
    if (threadIdx.x == 0) columns.scale[0] = scale_of(largest, kDigits);
    int sums[kDigits] = {};
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int word = round * kThreads + static_cast<int>(threadIdx.x);
      if (word >= words) break;
      float values[kCount];
      to_floats<kCount>(pairs[round], dtype, values);
      uint32_t codes[kDigits][Layout::kPerByte];
      quantize_share<Layout::kPerByte>(values, quantizer, codes, sums);
      const int r0 = word / 16 * Layout::kHalfSteps + word / 4 % 4 * Layout::kPerByte;
#pragma unroll
      for (int d = 0; d < kDigits; ++d) {
        int8_t* to = q + d * 64 + word % 4 * 16;
        if constexpr (Layout::kPerByte == 4) {
          *reinterpret_cast<uint4*>(to + r0 / 4 * kDigits * 64) = {codes[d][0], codes[d][1], codes[d][2], codes[d][3]};
        } else {
#pragma unroll
          for (int i = 0; i < Layout::kPerByte; ++i)
            *reinterpret_cast<uint32_t*>(to + (r0 + i) / 4 * kDigits * 64 + (r0 + i) % 4 * 4) = codes[d][i];
        }
      }
    }
#pragma unroll
    for (int d = 0; d < kDigits; ++d) {
      const int total = warp_sum(sums[d]);
      if (lane == 0) columns.warp_sum[warp][d] = total;
    }
  }

  // The token becomes the RowNorm of what was loaded. All threads of the block; the first block writes norm.values.
  template <Dtype kDtype>
  __device__ __forceinline__ void normalize_as(const RowNorm& norm, const Row& others, const Row& weights,
                                               Columns& columns) {
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
    if (norm.values != nullptr && blockIdx.x == 0) this->store(norm.values, norm.n);
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
