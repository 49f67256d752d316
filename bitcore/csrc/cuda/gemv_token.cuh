// The token that every block of gemv.cu quantizes, and the columns that it becomes.
#pragma once

#include "activations.cuh"
#include "gemv_tiles.cuh"

namespace bitlab::cuda {

// The row of x, a word's share of K for each thread and round.
template <int kRounds, bool kPairs>
struct Token;

// Of any dtype, at any address.
template <int kRounds>
struct Token<kRounds, false> {
  float values[kRounds][kPerWord];

  __device__ __forceinline__ void load(const Gemv& a) {
#pragma unroll
    for (int round = 0; round < kRounds; ++round)
      load_row<kPerWord>(a.linear.x, a.linear.dtype, a.linear.k,
                         int64_t{kPerWord} * (round * kGroups * kThreads + static_cast<int>(threadIdx.x)),
                         a.x_is_aligned, values[round]);
  }

  __device__ __forceinline__ uint32_t absmax(const Gemv&, int round) const { return absmax_bits(values[round]); }

  __device__ __forceinline__ void floats(const Gemv&, int round, float (&result)[kPerWord]) const {
#pragma unroll
    for (int i = 0; i < kPerWord; ++i) result[i] = values[round][i];
  }
};

// Of two bytes a value, four of them at once.
template <int kRounds>
struct Token<kRounds, true> {
  uint32_t pairs[kRounds][kPerWord / 2];

  __device__ __forceinline__ void load(const Gemv& a) {
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int first = kPerWord * (round * kGroups * kThreads + static_cast<int>(threadIdx.x));
      const auto* from = reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(a.linear.x) + first);
#pragma unroll
      for (int i = 0; i < kPerWord / 4; ++i) {
        uint2 v = {0, 0};
        if (first + 4 * i < a.linear.k) v = from[i];
        pairs[round][2 * i] = v.x, pairs[round][2 * i + 1] = v.y;
      }
    }
  }

  __device__ __forceinline__ uint32_t absmax(const Gemv& a, int round) const {
    return absmax_bits(pairs[round], a.linear.dtype);
  }

  __device__ __forceinline__ void floats(const Gemv& a, int round, float (&result)[kPerWord]) const {
    to_floats<kPerWord>(pairs[round], a.linear.dtype, result);
  }
};

// The columns that F is multiplied with, of each digit first q(i - 1), then q(i): [warp][pair of words][column][t][10]
// words, of which the first 8 lie together by fours and the others behind those of all columns.
template <int kDigits>
__device__ __forceinline__ void write_columns(const uint32_t (&q)[kDigits][kPerByte], int word, int lane_words,
                                              int8_t* columns) {
  const int lane = word / lane_words, place = word % lane_words, t = lane % 4, first = place % 2 * kPerByte;
  const int pairs = (lane_words + 1) / 2;
  int8_t* to = columns + (lane / 4 * pairs + place / 2) * kColumnsOf<kDigits> * kPairOfWords;
  const auto at = [&](int r, int column) {
    const int offset = r < 8 ? ((r / 4 * kColumnsOf<kDigits> + column) * 4 + t) * 16 + r % 4 * 4
                             : kColumnsOf<kDigits> * 128 + (column * 4 + t) * 8 + (r - 8) * 4;
    return reinterpret_cast<uint32_t*>(to + offset);
  };
#pragma unroll
  for (int d = 0; d < kDigits; ++d)
#pragma unroll
    for (int i = 0; i < kPerByte; ++i) {
      *at(first + i, 2 * d) = q[d][i];
      *at(first + i, 2 * d + 1) = i + 1 < kPerByte ? q[d][i + 1] : 0;
    }
}

}  // namespace bitlab::cuda
