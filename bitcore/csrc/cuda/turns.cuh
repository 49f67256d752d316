// What the blocks of hopper_turns.cu compute: which tiles, one after the other, and what they need for it.
#pragma once

#include <cuda.h>

#include "hopper_outputs.cuh"
#include "rows.cuh"

namespace bitlab::cuda {
namespace {

constexpr int kGroups = 2, kThreads = 128 * kGroups;  // warpgroups that multiply
constexpr int kRowTiles = 2, kRowsOfGroup = 64 * kRowTiles, kRows = kGroups * kRowsOfGroup;
constexpr int kColumnOfStage = 128;  // bytes: a stage of activations is so much of K
constexpr int kBoxTokens = 16;       // of outputs that are written together

// What a block computes: kRows rows times kColumns columns, or kLastColumns behind whole turns.
// Value: int8_t, or what x is where activations stay in floating point.
template <int kColumnsOfTile, int kColumnsOfLast, typename ValueOfX>
struct Shape {
  using Value = ValueOfX;
  static constexpr bool kInt8 = std::is_same_v<Value, int8_t>;
  using Sum = std::conditional_t<kInt8, int, float>;
  static constexpr int kColumns = kColumnsOfTile, kLastColumns = kColumnsOfLast;
  static constexpr int kBatches = kInt8 ? 2 : 4;  // of a chunk, each with a stage of activations
  static constexpr int kStage = kColumns * kColumnOfStage;
};

struct Turns {
  CUtensorMap x, x_of_last;    // where activations stay in floating point: boxes of a stage, of tiles of either width
  CUtensorMap y[kMaxWeights];  // boxes of kBoxTokens tokens and 64 rows
  Linear linear;
  Quantized quantized;
  RowTiles tiles;
  int row_bytes, stages, chunks;
  int token_tiles, whole_row_tiles, whole_tiles;  // in whole turns
  int last_token_tiles, all_tiles;
};

// Where the stages and barriers of a block lie in shared memory.
struct Ring {
  uint32_t activations, full, empty;  // `full` and `empty`: a barrier for each stage
  uint32_t staged, written;           // of a warpgroup's outputs: a barrier for each slice; one for all of them
};

struct Place {
  int row_tile, token_tile;
};

// Tiles of tokens lie side by side, so that memory is asked for a weight once for all of them.
__device__ __forceinline__ Place place_of(const Turns& a, int tile) {
  if (tile >= a.whole_tiles) {
    const int last = tile - a.whole_tiles;
    return {a.whole_row_tiles + last / a.last_token_tiles, last % a.last_token_tiles};
  }
  const int of_group = kBeside * a.whole_row_tiles, group = tile / of_group, rest = tile % of_group;
  const int beside = min(kBeside, a.token_tiles - group * kBeside);
  return {rest / beside, group * kBeside + rest % beside};
}

// Calls visit(tile, columns as a constant) for each tile of this block.
template <typename Shape, typename Visit>
__device__ __forceinline__ void for_each_tile(const Turns& a, const Visit& visit) {
  int tile = static_cast<int>(blockIdx.x);
#pragma unroll 1
  for (; tile < a.whole_tiles; tile += static_cast<int>(gridDim.x))
    visit(tile, std::integral_constant<int, Shape::kColumns>());
  if constexpr (Shape::kLastColumns > 0)
#pragma unroll 1
    for (; tile < a.all_tiles; tile += static_cast<int>(gridDim.x))
      visit(tile, std::integral_constant<int, Shape::kLastColumns>());
}

__device__ __forceinline__ const Weight& weight_of(const Turns& a, Place place, int64_t* first_row) {
  return a.linear.weights[weight_of_tile(a.linear, a.tiles, place.row_tile, kRows, first_row)];
}

}  // namespace
}  // namespace bitlab::cuda
