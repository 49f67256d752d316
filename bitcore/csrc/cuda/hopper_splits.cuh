// Blocks of a cluster that share K bring their sums together: of each eight columns one of them gets the others' sums.
//
// A lane sends the sums of its own registers to the same lane there, 16 bytes at a time, without waiting for anybody;
// the receiver counts the bytes at a barrier. Columns are dealt out by eight tokens, all digits together.
#pragma once

#include "hopper_outputs.cuh"
#include "hopper_tile.h"

namespace bitlab::cuda {
namespace {

// Calls visit(eight, owner, eight's place among those of the owner) for each eight columns; `eight` is a constant.
template <int kEights, typename Visit>
__device__ __forceinline__ void for_each_eight(int digits, int splits, const Visit& visit) {
  int owner = 0, round = 0, digit = 0;
#pragma unroll
  for (int eight = 0; eight < kEights; ++eight) {
    visit(eight, owner, round * digits + digit);
    if (++digit == digits) {
      digit = 0;
      if (++owner == splits) owner = 0, ++round;
    }
  }
}

template <int kColumns, int kRowTiles>
struct Splits {
  static constexpr int kEights = kColumns / 8;
  int digits, splits, rank;
  uint32_t received, barrier;  // in shared memory

  __device__ __forceinline__ void send_others(const int (&sums)[kRowTiles][kColumns / 2]) const {
    const int most = most_own_eights(kColumns, digits, splits);
    for_each_eight<kEights>(digits, splits, [&](int eight, int owner, int place) {
      if (owner == rank) return;
      const int sender = rank - (rank > owner);
      const uint32_t to =
          address_in_block(received + ((sender * most + place) * kRowTiles * kThreads + threadIdx.x) * 16, owner);
      const uint32_t there = address_in_block(barrier, owner);
#pragma unroll
      for (int j = 0; j < kRowTiles; ++j) {
        const int* of = &sums[j][4 * eight];
        send(to + j * kSentSumBytes, {of[0], of[1], of[2], of[3]}, there);
      }
    });
  }

  // This block's own eights with the others' sums added, to `to` [own columns][kStride].
  template <int kStride>
  __device__ __forceinline__ void store_own(const int (&sums)[kRowTiles][kColumns / 2], int* to) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, most = most_own_eights(kColumns, digits, splits);
    if (splits > 1) wait(barrier, 0);
    for_each_eight<kEights>(digits, splits, [&](int eight, int owner, int place) {
      if (owner != rank) return;
#pragma unroll
      for (int j = 0; j < kRowTiles; ++j) {
        int total[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) total[i] = sums[j][4 * eight + i];
        for (int sender = 0; sender < splits - 1; ++sender) {
          const Words<4> part =
              load_shared_words(received + (((sender * most + place) * kRowTiles + j) * kThreads + threadIdx.x) * 16);
#pragma unroll
          for (int i = 0; i < 4; ++i) total[i] += static_cast<int>(part.word[i]);
        }
        const int row = warp / 4 * 64 * kRowTiles + j * 64 + warp % 4 * 16 + lane / 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) to[(place * 8 + lane % 4 * 2 + i % 2) * kStride + row + i / 2 * 8] = total[i];
      }
    });
  }
};

}  // namespace
}  // namespace bitlab::cuda
