// Blocks of a cluster that share K bring their sums together: of each eight columns one of them gets the others' sums.
//
//     send      a lane's sums of eight columns, 16 bytes at a time, to the same lane of the block that gets them, and
//               waits for nobody; that block counts the bytes at a barrier
//     received  [other block][own eights][lane][4] in shared memory
//     write     a lane adds what came for it; outputs of two bytes then go through a transposed copy, as those of one
//               block do
//
// Columns are dealt out by eight tokens, all digits together. Where there are as many blocks as warpgroups, rows are
// instead: block i gets those of warpgroup i, in its registers, and writes them as if it had not shared K. A block runs
// this code once, and what lies behind much code comes late: what can be a loop stays one.
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

template <int kColumns, int kRows>
struct Splits {
  static constexpr int kEights = kColumns / 8, kGroups = hopper_groups(kRows), kRowTiles = hopper_row_tiles(kRows);
  static constexpr int kSentSumBytes = sent_sum_bytes(kRows);
  int digits, splits, rank, most_own;
  uint32_t received, barrier;  // in shared memory

  // What this lane gets from the `sender`-th of the others.
  __device__ __forceinline__ uint32_t slot(int sender, int place) const {
    return received + (sender * most_own + place) * kSentSumBytes + threadIdx.x * 16;
  }

  __device__ __forceinline__ void send_others(const int (&sums)[1][kColumns / 2]) const {
    for_each_eight<kEights>(digits, splits, [&](int eight, int owner, int place) {
      if (owner == rank) return;
      const int* of = &sums[0][4 * eight];
      send(address_in_block(slot(rank - (rank > owner), place), owner), {of[0], of[1], of[2], of[3]},
           address_in_block(barrier, owner));
    });
  }

  __device__ __forceinline__ void add_others(int place, int (&total)[4]) const {
#pragma unroll 1
    for (int sender = 0; sender < splits - 1; ++sender) {
      const Words<4> part = load_shared_words(slot(sender, place));
#pragma unroll
      for (int i = 0; i < 4; ++i) total[i] += static_cast<int>(part.word[i]);
    }
  }

  // Where rows are dealt out: what the warpgroup `owner` gets from the `sender`-th of the others, of eight columns.
  __device__ __forceinline__ uint32_t slot_of_rows(int sender, int eight) const {
    return received + (sender * kEights + eight) * sent_sum_bytes(64) + threadIdx.x % 128 * 16;
  }

  __device__ __forceinline__ void send_rows(const int (&sums)[kRowTiles][kColumns / 2]) const {
    const int owner = static_cast<int>(threadIdx.x) / 128;
    const uint32_t to = address_in_block(slot_of_rows(rank - (rank > owner), 0), owner),
                   at = address_in_block(barrier, owner);
#pragma unroll
    for (int eight = 0; eight < kEights; ++eight) {
      const int* of = &sums[0][4 * eight];
      send(to + eight * sent_sum_bytes(64), {of[0], of[1], of[2], of[3]}, at);
    }
  }

  __device__ __forceinline__ void add_rows(int (&sums)[kRowTiles][kColumns / 2]) const {
    wait(barrier, 0);
#pragma unroll 1
    for (int sender = 0; sender < splits - 1; ++sender)
#pragma unroll
      for (int eight = 0; eight < kEights; ++eight) {
        const Words<4> part = load_shared_words(slot_of_rows(sender, eight));
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[0][4 * eight + i] += static_cast<int>(part.word[i]);
      }
  }

  // This block's own eights as int32 sums, to `to` [own columns][kStride].
  template <int kStride>
  __device__ __forceinline__ void store_own(const int (&sums)[kRowTiles][kColumns / 2], int* to) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (splits > 1) wait(barrier, 0);
    for_each_eight<kEights>(digits, splits, [&](int eight, int owner, int place) {
      if (owner != rank) return;
#pragma unroll
      for (int j = 0; j < kRowTiles; ++j) {
        int total[4] = {sums[j][4 * eight], sums[j][4 * eight + 1], sums[j][4 * eight + 2], sums[j][4 * eight + 3]};
        if constexpr (kRowTiles == 1) add_others(place, total);
        const int row = warp / 4 * 64 * kRowTiles + j * 64 + warp % 4 * 16 + lane / 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) to[(place * 8 + lane % 4 * 2 + i % 2) * kStride + row + i / 2 * 8] = total[i];
      }
    });
  }

  // Of shared memory that write_own needs.
  static constexpr int own_bytes(int most_own) { return most_own * (kSentSumBytes + 8 * kGroups * kColumnBytes); }

  // Writes the outputs, of two bytes, of this block's own eights; of tokens of one digit. Its own sums go through `own`
  // in shared memory, as registers cannot be asked for by number.
  template <Format kFormat, typename Value, typename OfBlock>
  __device__ __forceinline__ void write_own(const int (&sums)[1][kColumns / 2], const Weight& weight, int64_t first_row,
                                            int64_t first_token, int64_t m, const OfBlock& factors,
                                            uint32_t own) const {
    constexpr int kVectors = 64 / 8, kAtOnce = 128 / kVectors;  // of 16 bytes in a column; columns
    const uint32_t own_slot = own + threadIdx.x * 16;
    for_each_eight<kEights>(digits, splits, [&](int eight, int owner, int place) {
      const auto of = [&](int i) { return static_cast<uint32_t>(sums[0][4 * eight + i]); };
      if (owner == rank) store_16_bytes(own_slot + place * kSentSumBytes, {of(0), of(1), of(2), of(3)});
    });
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / 4;
    const int eights = (kEights - rank + splits - 1) / splits;
    const int64_t group_row = first_row + group * 64;
    const uint32_t outputs = own + most_own * (kSentSumBytes + group * 8 * kColumnBytes);
    float row_scale[2], row_bias[2];
    int zero[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = warp % 4 * 16 + i * 8 + lane / 4;
      const int64_t n = min(group_row + row, weight.n - 1);
      row_scale[i] = factors.row_scale[group * 64 + row];
      row_bias[i] = bias_of(weight, n);
      zero[i] = zero_of(weight, kFormat, n, 0);
    }
    uint32_t to = outputs + place_of_eight(lane % 8, warp % 4 * 2 + lane / 8 % 2);
    wait(barrier, 0);
#pragma unroll 1
    for (int place = 0; place < eights; ++place) {
      const int column = (place * splits + rank) * 8 + lane % 4 * 2;
      const float2 scale = *reinterpret_cast<const float2*>(factors.token_scale + column);
      const int2 sum = *reinterpret_cast<const int2*>(factors.column_sum + column);
      const Words<4> part = load_shared_words(own_slot + place * kSentSumBytes);
      int total[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) total[i] = static_cast<int>(part.word[i]);
      add_others(place, total);
      uint32_t pairs[2];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        pairs[i] =
            pair_of(__fadd_rn(output_of<kFormat>(total[2 * i], zero[i], sum.x, scale.x, row_scale[i]), row_bias[i]),
                    __fadd_rn(output_of<kFormat>(total[2 * i + 1], zero[i], sum.y, scale.y, row_scale[i]), row_bias[i]),
                    Value());
      store_transposed(to, pairs);
      to += 8 * kColumnBytes;
    }
    synchronize_group(group);
    const int vector = threadIdx.x % kVectors;
    const int64_t n = group_row + vector * 8;
    if (n >= weight.n) return;
    auto* y = static_cast<uint16_t*>(weight.y) + n;
#pragma unroll 1
    for (int column = threadIdx.x % 128 / kVectors; column < eights * 8; column += kAtOnce) {
      const int64_t token = first_token + (column / 8 * splits + rank) * 8 + column % 8;
      if (token >= m) return;
      write_eight(y + token * weight.n, load_shared_words(outputs + place_of_eight(column, vector)),
                  has_whole_eights(weight), weight.n - n);
    }
  }
};

}  // namespace
}  // namespace bitlab::cuda
