// The chunks of weights that the warps of a block read: a block takes one tile of 16 rows after the other, and warp w
// of W chunks w, w + W, ... of all its rows, with the next ones, also of the next tile, always under way.
#pragma once

#include "kernels.h"
#include "rows.cuh"
#include "weight_stages.cuh"

namespace bitlab::cuda {

constexpr int kRows = 16;  // of a tile

// A call whose blocks take tile after tile.
struct TiledCall {
  Linear linear;
  Quantized quantized;
  RowTiles tiles;
  int64_t row_bytes;
};

// kStages: chunks of a warp, one of them being used.
template <int kWarps, bool kAligned, int kStages>
constexpr int kRingBytes = kWarps * kStages * kRows * kRowStage<kAligned>;

// The chunks that a warp copies, tile after tile. A block is kGroups groups of kWarps warps, each with tiles of its
// own.
template <int kWarps, int kGroups, bool kAligned>
struct ChunkReader {
  const TiledCall& a;
  int tile, offset;     // of the lane's bytes in its rows; behind the last tile INT_MAX
  int copies_end;       // offset at which there is nothing to copy of a row
  int turns_end;        // the same for all warps of the block: chunks in whole turns
  int64_t tile_stride;  // bytes from the rows of a tile to those of the group's next
  const Weight* weight;
  const uint8_t *row, *row8;

  __device__ __forceinline__ explicit ChunkReader(const TiledCall& a) : a(a), tile(first_tile()) {
    const int chunks_end = static_cast<int>(a.quantized.chunks) * kChunkBytes, turn = kWarps * kChunkBytes;
    copies_end = kAligned ? static_cast<int>(a.row_bytes) : chunks_end;
    turns_end = (chunks_end + turn - 1) / turn * turn;
    find_rows();
    tile_stride = static_cast<int64_t>(tile_step()) * kRows * a.row_bytes;
  }

  // Neighbouring tiles are those of different multiprocessors.
  __device__ __forceinline__ static int first_tile() {
    return static_cast<int>(blockIdx.x + (kGroups == 1 ? 0 : threadIdx.x / (32 * kWarps) * gridDim.x));
  }
  __device__ __forceinline__ static int tile_step() { return static_cast<int>(gridDim.x) * kGroups; }

  __device__ __forceinline__ void next_tile() {
    tile += tile_step();
    if (a.tiles.even && tile < a.tiles.count) {
      offset -= turns_end;
      row += tile_stride;
      row8 += tile_stride;
    } else {
      find_rows();
    }
  }

  __device__ __forceinline__ void find_rows() {
    offset = 0x7fffffff;
    if (tile >= a.tiles.count) return;
    offset = (kGroups == 1 ? threadIdx.x / 32 : threadIdx.x / 32 % kWarps) * kChunkBytes + threadIdx.x % 4 * 16;
    int64_t first;
    weight = &a.linear.weights[weight_of_tile(a.linear, a.tiles, tile, kRows, &first)];
    const int64_t g = threadIdx.x % 32 / 4, last = weight->n - 1;
    row = weight->packed + min(first + g, last) * a.row_bytes;
    row8 = weight->packed + min(first + g + 8, last) * a.row_bytes;
  }

  // A turn of the block is a chunk for each of its warps; in the last turn of a tile for some of them none.
  __device__ __forceinline__ void copy(uint32_t stage) {
    if (offset < copies_end) {
      copy_share<kAligned>(*weight, a.row_bytes, row, offset, stage);
      copy_share<kAligned>(*weight, a.row_bytes, row8, offset, stage + 8 * kRowStage<kAligned>);
    }
    end_copies();
    next_turn();
  }

  __device__ __forceinline__ void next_turn() {
    if (offset == 0x7fffffff) return;
    offset += kWarps * kChunkBytes;
    if (offset >= turns_end) next_tile();
  }

  // What copy() would read, for later; null where that is nothing. kAligned.
  struct Ahead {
    const uint8_t *row, *row8;
  };

  __device__ __forceinline__ Ahead look_ahead() {
    const bool live = offset < copies_end;
    const Ahead ahead = {in_register(live ? row + offset : nullptr), in_register(live ? row8 + offset : nullptr)};
    next_turn();
    return ahead;
  }

  __device__ __forceinline__ static void copy(const Ahead& ahead, uint32_t stage) {
    if (ahead.row != nullptr) {
      copy_16_bytes(stage, ahead.row);
      copy_16_bytes(stage + 8 * kRowStage<true>, ahead.row8);
    }
    end_copies();
  }

  // Brings the first tile nearer. By the first thread of a group, whose row is the tile's first.
  __device__ __forceinline__ void prefetch() const {
    if (threadIdx.x % (32 * kWarps) != 0 || tile >= a.tiles.count) return;
    const int64_t left = weight->packed + weight->n * a.row_bytes - row;
    prefetch_to_l2(row, min(left, kRows * a.row_bytes));
  }
};

}  // namespace bitlab::cuda
