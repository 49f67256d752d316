// Blocks of a cluster that share K bring their sums together: each gets those of some of the columns.
//
//     send      a lane's sums of eight columns, 16 bytes at a time, to the same lane of the block that gets them, and
//               waits for nobody; that block counts the bytes at a barrier
//     received  [other block][own eights][lane][4] in shared memory
//     add       a lane adds what came for it to its own sums
//
// Outputs of two bytes are then written as if the block had not shared K, of a tile of fewer columns. Which columns are
// whose is a constant there: a block runs this code once, and what lies behind much code comes late.
#pragma once

#include "async_copy.cuh"
#include "hopper_tile.h"
#include "outputs.h"
#include "wgmma.cuh"

namespace bitlab::cuda {
namespace {

// Calls visit(own_eights of blocks that share K, as a constant), which is 0 where kernels for each would be too many.
template <Outputs kOutputs, int kEights, int kOwn = 1, typename Visit>
cudaError_t visit_own(int own, const Visit& visit) {
  if constexpr (kOutputs == Outputs::kAny) {
    return visit(std::integral_constant<int, 0>());
  } else if constexpr (2 * kOwn > kEights) {
    return cudaErrorInvalidValue;
  } else {
    if constexpr (kEights % kOwn == 0)
      if (own == kOwn) return visit(std::integral_constant<int, kOwn>());
    return visit_own<kOutputs, kEights, kOwn + 1>(own, visit);
  }
}

template <int kColumns, int kRows>
struct Splits {
  static constexpr int kEights = kColumns / 8, kRowTiles = hopper_row_tiles(kRows);
  static constexpr int kSentSumBytes = sent_sum_bytes(kRows);
  int splits, rank, own;
  uint32_t received, barrier;  // in shared memory

  // Calls visit(eight, owner, the eight's place among those of the owner) for each eight columns; `eight` is a
  // constant, and where `own` is one all of them are.
  template <typename Visit>
  __device__ __forceinline__ void for_each_eight(const Visit& visit) const {
    int owner = 0, place = 0;
#pragma unroll
    for (int eight = 0; eight < kEights; ++eight) {
      visit(eight, owner, place);
      if (++place == own) place = 0, ++owner;
    }
  }

  // What this block will receive.
  __device__ __forceinline__ uint32_t bytes_to_receive() const {
    return (splits - 1) * max(min(own, kEights - rank * own), 0) * kSentSumBytes;
  }

  // What this lane gets from the `sender`-th of the others.
  __device__ __forceinline__ uint32_t slot(int sender, int place) const {
    return received + (sender * own + place) * kSentSumBytes + threadIdx.x * 16;
  }

  __device__ __forceinline__ void send_others(const int (&sums)[1][kColumns / 2]) const {
    for_each_eight([&](int eight, int owner, int place) {
      if (owner == rank) return;
      const int* of = &sums[0][4 * eight];
      send(address_in_block(slot(rank - (rank > owner), place), owner), {of[0], of[1], of[2], of[3]},
           address_in_block(barrier, owner));
    });
  }

  // Adds what came for kCount own eights, from that at `first_place` on, to `sums` of these eights.
  template <int kCount>
  __device__ __forceinline__ void add_others(int* sums, int first_place) const {
#pragma unroll 1
    for (int sender = 0; sender < splits - 1; ++sender)
#pragma unroll
      for (int eight = 0; eight < kCount; ++eight) {
        const Words<4> part = load_shared_words(slot(sender, first_place + eight));
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[4 * eight + i] += static_cast<int>(part.word[i]);
      }
  }

  __device__ __forceinline__ void wait_for_others() const { wait(barrier, 0); }

  // This block's own sums become the first of them.
  __device__ __forceinline__ void bring_own_to_front(int (&sums)[1][kColumns / 2]) const {
    for_each_eight([&](int eight, int owner, int place) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (owner > 0 && owner == rank) sums[0][4 * place + i] = sums[0][4 * eight + i];
    });
  }

  // This block's own eights as int32 sums, to `to` [own columns][kStride].
  template <int kStride>
  __device__ __forceinline__ void store_own(const int (&sums)[kRowTiles][kColumns / 2], int* to) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (splits > 1) wait_for_others();
    for_each_eight([&](int eight, int owner, int place) {
      if (owner != rank) return;
#pragma unroll
      for (int j = 0; j < kRowTiles; ++j) {
        int total[4] = {sums[j][4 * eight], sums[j][4 * eight + 1], sums[j][4 * eight + 2], sums[j][4 * eight + 3]};
        if constexpr (kRowTiles == 1) add_others<1>(total, place);
        const int row = warp / 4 * 64 * kRowTiles + j * 64 + warp % 4 * 16 + lane / 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) to[(place * 8 + lane % 4 * 2 + i % 2) * kStride + row + i / 2 * 8] = total[i];
      }
    });
  }
};

}  // namespace
}  // namespace bitlab::cuda
