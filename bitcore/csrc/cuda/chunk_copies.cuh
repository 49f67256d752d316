// Packed weights that each lane copies for itself (weight_stages.cuh), chunk after chunk of a tile of rows.
#pragma once

#include "hopper_tile.h"
#include "weight_stages.cuh"

namespace bitlab::cuda {

template <int kRows, bool kAligned>
struct ChunkCopies {
  static constexpr int kRowTiles = hopper_row_tiles(kRows);
  static constexpr int kAhead = kRowTiles == 1 ? 4 : 3;                     // chunks on their way
  static constexpr uint32_t kStage = 16 * kRowTiles * kRowStage<kAligned>;  // of a warp
  static constexpr int kBytes = hopper_groups(kRows) * 4 * kAhead * kStage;
  const Weight& weight;
  int row_bytes, offset, end;  // bytes of a row: of the next copy, and behind the last
  uint32_t first_stage;
  int stage = 0;                        // of the chunk that is read next, and copied to when that one has left
  const uint8_t* row;                   // this lane's first
  uint32_t rows_behind[2 * kRowTiles];  // from there to each of them, in bytes

  // Of chunks [first_chunk, end_chunk).
  __device__ __forceinline__ ChunkCopies(const Weight& weight, int64_t first_row, int row_bytes, int first_chunk,
                                         int end_chunk, uint32_t stages)
      : weight(weight), row_bytes(row_bytes), offset(first_chunk * kChunkBytes + threadIdx.x % 4 * 16) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    end = kept(kAligned ? min(end_chunk * kChunkBytes, row_bytes) : end_chunk * kChunkBytes);
    first_stage = kept(stages + warp * kAhead * kStage + place_in_stage<kAligned>());
    const uint8_t* first = weight.packed + first_row * row_bytes;
    const int last_row = static_cast<int>(min(weight.n - first_row, static_cast<int64_t>(kRows))) - 1;
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      const int of_tile = warp / 4 * 64 * kRowTiles + warp % 4 * 16 + i / 2 * 64 + i % 2 * 8 + lane / 4;
      const uint8_t* begin = first + static_cast<int64_t>(min(of_tile, last_row)) * row_bytes;
      if (i == 0) row = kept(begin);
      rows_behind[i] = i == 0 ? 0 : kept(static_cast<uint32_t>(begin - row));
    }
#pragma unroll 1
    for (int i = 0; i < kAhead; ++i) copy();
  }

  // Of one row tile: the compiler would compute it anew between the products, which slows them down.
  template <typename T>
  static __device__ __forceinline__ T kept(T value) {
    if constexpr (kRowTiles == 1) return in_register(value);
    return value;
  }

  __device__ __forceinline__ uint32_t place(int j) const {
    return first_stage + stage * kStage + j * 8 * kRowStage<kAligned>;
  }

  __device__ __forceinline__ void copy() {
    if constexpr (!kAligned) __syncwarp();  // lanes have read their neighbours' bytes
    if (offset < end)
#pragma unroll
      for (int j = 0; j < 2 * kRowTiles; ++j)
        copy_share<kAligned>(weight, row_bytes, row + rows_behind[j], offset, place(j));
    end_copies();
    offset += kChunkBytes;
    stage = stage + 1 == kAhead ? 0 : stage + 1;
  }

  // The next chunk: 16 bytes of each row of this lane.
  __device__ __forceinline__ void read(Words<4> (&words)[2 * kRowTiles]) {
    wait_for_copies<kAhead - 1>();
    if constexpr (!kAligned) __syncwarp();
#pragma unroll
    for (int j = 0; j < 2 * kRowTiles; ++j)
      words[j] = staged_words<kAligned>(place(j), shift_of_row<kAligned>(row + rows_behind[j]));
  }

  // That chunk's words have become codes: another one takes its stage.
  __device__ __forceinline__ void leave() { copy(); }
};

}  // namespace bitlab::cuda
