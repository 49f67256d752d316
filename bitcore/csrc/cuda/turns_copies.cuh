// What moves through a block of hopper_turns.cu while it multiplies: activations and weights in, outputs out.
#pragma once

#include "turns.cuh"
#include "weight_stages.cuh"

namespace bitlab::cuda {
namespace {

constexpr int kAhead = 3;                                        // chunks of weights on their way
constexpr uint32_t kWeightStage = 16 * kRowTiles * kChunkBytes;  // of a warp

// One thread. int8 activations lie in tiles of kColumns columns, of which a narrower one is part of one or two.
template <typename Shape>
__device__ __forceinline__ void fetch_activations(const Turns& a, const Ring& ring) {
  constexpr int kColumns = Shape::kColumns, kStage = Shape::kStage;
  const int64_t tile_bytes = int64_t{a.chunks} * Shape::kBatches * kStage;
  int stage = 0, phase = 1;
  wait_for_previous_kernel();
  for_each_tile<Shape>(a, [&](int tile, auto tile_columns) {
    constexpr int kTile = decltype(tile_columns)::value;
    const int first = place_of(a, tile).token_tile * kTile, laid_out = first / kColumns, column = first % kColumns;
    const int8_t* from = a.quantized.q + laid_out * tile_bytes + column * kColumnOfStage;
    const int here = min(kTile, kColumns - column) * kColumnOfStage;
    const int in_next = (laid_out + 1) * kColumns < a.linear.m ? kTile * kColumnOfStage - here : 0;
#pragma unroll 1
    for (int i = 0; i < a.chunks * Shape::kBatches; ++i, from += kStage) {
      const uint32_t to = ring.activations + stage * kStage, full = ring.full + 8 * stage;
      wait(ring.empty + 8 * stage, phase);
      if constexpr (Shape::kInt8) {
        arrive_and_expect(full, here + in_next);
        copy_bulk(to, from, here, full);
        if (in_next > 0) copy_bulk(to + here, from + tile_bytes - column * kColumnOfStage, in_next, full);
      } else {
        arrive_and_expect(full, kTile * kColumnOfStage);
        copy_box(to, kTile == kColumns ? &a.x : &a.x_of_last, first, i * (kColumnOfStage / 2), full);
      }
      if (++stage == a.stages) stage = 0, phase ^= 1;
    }
  });
}

// One thread, for warpgroup `group`, whose outputs lie at `outputs`.
template <typename Shape>
__device__ __forceinline__ void write_outputs(const Turns& a, const Ring& ring, int group, uint32_t outputs) {
  int phase = 0;
  for_each_tile<Shape>(a, [&](int tile, auto tile_columns) {
    constexpr int kTile = decltype(tile_columns)::value;
    const Place place = place_of(a, tile);
    int64_t first_row;
    const Weight& weight = weight_of(a, place, &first_row);
    const int row = static_cast<int>(first_row) + group * kRowsOfGroup, token = place.token_tile * kTile;
#pragma unroll 1
    for (int column = 0; column < kTile; column += kBoxTokens) {
      if (column % kSlice<kTile> == 0) wait(ring.staged + column / kSlice<kTile> * 8, phase);
#pragma unroll
      for (int j = 0; j < kRowTiles; ++j)
        write_box(&a.y[&weight - a.linear.weights], token + column, row + j * 64,
                  outputs + (j * kTile + column) * kColumnBytes);
    }
    phase ^= 1;
    wait_for_box_reads();
    arrive(ring.written);
  });
}

// This lane's share of packed weights, in stages of its own, for all tiles of the block. kShared: four lanes read what
// each of them has copied.
template <bool kShared>
struct WeightCopies {
  const Turns& a;
  uint32_t first_stage, copy_stage, read_stage;
  const uint8_t* rows[2 * kRowTiles];
  int tile, offset, chunks_left;

  __device__ __forceinline__ WeightCopies(const Turns& a, Place first, uint32_t stages)
      : a(a), first_stage(stages), copy_stage(stages), read_stage(stages), tile(static_cast<int>(blockIdx.x)) {
    begin_tile(first);
  }

  __device__ __forceinline__ void begin_tile(Place place) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int64_t first_row;
    const Weight& weight = weight_of(a, place, &first_row);
    const uint8_t* first = weight.packed + first_row * a.row_bytes;
    const int last_row = static_cast<int>(min(weight.n - first_row, static_cast<int64_t>(kRows))) - 1;
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      const int row = warp / 4 * kRowsOfGroup + i / 2 * 64 + warp % 4 * 16 + i % 2 * 8 + lane / 4;
      rows[i] = first + static_cast<int64_t>(min(row, last_row)) * a.row_bytes;
    }
    offset = lane % 4 * 16;
    chunks_left = a.chunks;
  }

  __device__ __forceinline__ uint32_t next(uint32_t stage) const {
    return stage == first_stage + (kAhead - 1) * kWeightStage ? first_stage : stage + kWeightStage;
  }

  __device__ __forceinline__ void copy() {
    if constexpr (kShared) __syncwarp();  // lanes have read their neighbours' bytes
    if (offset < a.row_bytes)
#pragma unroll
      for (int j = 0; j < 2 * kRowTiles; ++j) copy_16_bytes(copy_stage + j * 8 * kChunkBytes, rows[j] + offset);
    end_copies();
    copy_stage = next(copy_stage);
    offset += kChunkBytes;
    if (--chunks_left == 0) {
      tile += static_cast<int>(gridDim.x);
      if (tile < a.all_tiles) {
        begin_tile(place_of(a, tile));
      } else {
        offset = a.row_bytes;  // nothing more
      }
    }
  }

  // Of a chunk what this lane has copied of row tile j, behind which so many chunks are on their way.
  template <int kBehind>
  __device__ __forceinline__ void read(int j, Words<4> (&words)[2 * kRowTiles]) {
    if (j == 0) wait_for_copies<kBehind>();
#pragma unroll
    for (int i = 2 * j; i < 2 * j + 2; ++i) words[i] = load_shared_words(read_stage + i * 8 * kChunkBytes);
    if (j + 1 == kRowTiles) read_stage = next(read_stage);
  }

  // Of a chunk what lane `piece` of four has copied of row tile j, for all of them.
  __device__ __forceinline__ void read_piece(int piece, int j, Words<4> (&words)[2 * kRowTiles]) {
    if (piece == 0 && j == 0) {
      wait_for_copies<kAhead - 1>();
      __syncwarp();
    }
    const uint32_t from = read_stage - threadIdx.x % 4 * 16 + piece * 16;
#pragma unroll
    for (int i = 2 * j; i < 2 * j + 2; ++i) words[i] = load_shared_words(from + i * 8 * kChunkBytes);
    if (piece == 3 && j + 1 == kRowTiles) read_stage = next(read_stage);
  }
};

}  // namespace
}  // namespace bitlab::cuda
