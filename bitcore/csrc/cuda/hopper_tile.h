// Which tile of hopper.cu or hopper_turns.cu serves a call, by what its blocks ask of a multiprocessor.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "rows.cuh"

namespace bitlab::cuda {

// Warpgroups of a block that multiply, and how many times 64 rows each of them has.
constexpr int hopper_groups(int rows) { return rows == 192 ? 3 : 2; }
constexpr int hopper_row_tiles(int rows) { return rows / 64 / hopper_groups(rows); }

constexpr int kMostSplits = 8;  // blocks that any GPU with clusters can start together

constexpr int64_t kMostHopperK = 1 << 16;  // sums of int8 with decode_high's codes stay in 32 bits

// What fits the dimensions of a grid, and sums of 32 bits.
inline bool hopper_can_serve(const Linear& linear) {
  return linear.group_size == 0 && linear.m * digits_of(linear) < 1 << 24 && rows_of_all(linear) < 1 << 22 &&
         linear.k <= kMostHopperK;
}

// Where blocks share K, each gets the sums of so many times eight columns, one block after the other: all digits of a
// token, and the fewest by which the tile is divided evenly, so the last blocks may get none.
constexpr int own_eights(int columns, int digits, int splits) {
  const int eights = (columns / 8 + digits - 1) / digits;  // of tokens
  int own = (eights + splits - 1) / splits;
  while (eights % own != 0) ++own;
  return own * digits;
}

constexpr int sent_sum_bytes(int rows) { return rows / 64 * 128 * 16; }  // of eight columns

// Of shared memory in which a block receives the sums of the others.
constexpr int received_bytes(const HopperTile& tile, int digits) {
  return (tile.splits - 1) * own_eights(tile.columns, digits, tile.splits) * sent_sum_bytes(tile.rows);
}

constexpr int kMostReceivedBytes = 112 * 1024;  // leaves room for two stages of activations

// Blocks of a tile that share a multiprocessor.
constexpr int hopper_resident(int columns, int rows) { return rows == 128 && columns <= 64 ? 2 : 1; }

inline int64_t hopper_token_tiles(const Linear& linear, int digits, int columns) {
  const int64_t tokens = columns / digits;
  return (linear.m + tokens - 1) / tokens;
}

// Blocks that run at once. Clusters do not fill the last places of the groups that multiprocessors are built in.
inline int64_t hopper_blocks_at_once(const Device& device, int splits, int resident) {
  constexpr int kOf132[kMostSplits] = {132, 132, 117, 120, 110, 102, 105, 120};  // as an H200 says of clusters of 1..8
  return int64_t{device.multiprocessors} * kOf132[splits - 1] / 132 * resident / splits * splits;
}

// What a tile costs beside its products, in about cycles.
struct HopperCosts {
  int64_t chunk_256_rows, chunk_192_rows, chunk_128_columns;
  int64_t chunk[4], least_alone[4];  // of 128 rows and 16, 32, 48 or 64 columns, where a chunk waits for its products
  int64_t least_shared;
  int64_t block, block_192_rows, block_size;  // the ends of a block: beside, and for each 128 x 1 of its outputs
  int64_t split, split_size;                  // where blocks share K: beside, and for as many of the others' outputs
  int64_t shared_tenths;                      // times as much for blocks that share a multiprocessor
  int64_t turns_together;                     // of blocks that end together, since they started together
};
// Fits to measurements on an H200: of codes that are decoded in few instructions with 5 to 4,096 tokens, and of others
// with 16 to 8,192.
constexpr HopperCosts kLightCosts = {.chunk_256_rows = 2000,
                                     .chunk_192_rows = 504,
                                     .chunk_128_columns = 0,  // never asked for, see hopper_tile
                                     .chunk = {339, 302, 390, 407},
                                     .least_alone = {669, 754, 102, 726},
                                     .least_shared = 0,
                                     .block = 3987,
                                     .block_192_rows = 5258,
                                     .block_size = 13,
                                     .split = 63,
                                     .split_size = 79,
                                     .shared_tenths = 14,
                                     .turns_together = 6};
constexpr HopperCosts kHeavyCosts = {.chunk_256_rows = 512,
                                     .chunk_192_rows = 0,  // never asked for either
                                     .chunk_128_columns = 450,
                                     .chunk = {350, 350, 350, 350},
                                     .least_alone = {1000, 1000, 1000, 1000},
                                     .least_shared = 1000,
                                     .block = 1500,
                                     .block_192_rows = 0,
                                     .block_size = 30,
                                     .split = 700,
                                     .split_size = 80,
                                     .shared_tenths = 12,
                                     .turns_together = 2};
constexpr bool hopper_is_light(Format format, bool floating) { return format != Format::kBase3 && !floating; }

// About the cycles that a call in so many blocks takes, with K of so many chunks of weights.
inline int64_t hopper_cost(const Linear& linear, int digits, int64_t chunks, int64_t blocks, bool floating,
                           const HopperTile& tile, const Device& device) {
  const HopperCosts& costs = hopper_is_light(linear.format, floating) ? kLightCosts : kHeavyCosts;
  const int64_t size = tile.rows / 64 * tile.columns / 2;
  const int64_t products = 64 * weights_per_byte(linear.format) * size / (floating ? 16 : 32);
  const int resident = hopper_resident(tile.columns, tile.rows);
  const int64_t at_once = hopper_blocks_at_once(device, tile.splits, resident);
  const bool alone = blocks <= hopper_blocks_at_once(device, tile.splits, 1);
  const int64_t half_turns =
      blocks <= costs.turns_together * at_once ? (blocks + at_once - 1) / at_once * 2 : 2 * blocks / at_once + 1;
  const int few = tile.columns / 16 - 1;
  const int64_t beside = tile.rows == 256      ? costs.chunk_256_rows
                         : tile.rows == 192    ? costs.chunk_192_rows
                         : tile.columns == 128 ? costs.chunk_128_columns
                                               : costs.chunk[few];
  int64_t chunk = (products + beside) * (alone ? 1 : resident);
  if (tile.columns < 128 && tile.rows == 128)
    chunk = std::max(chunk, alone ? costs.least_alone[few] : costs.least_shared);
  const int64_t block = tile.rows == 192 ? costs.block_192_rows : costs.block;
  const int64_t own = size * own_eights(tile.columns, digits, tile.splits) * 8 / tile.columns;
  const int64_t shared = tile.splits > 1 ? costs.split + costs.split_size * (size - own) : 0;
  const int64_t ends = (block + costs.block_size * own + shared) * (alone ? 10 : costs.shared_tenths) / 10;
  return half_turns * ((chunks + tile.splits - 1) / tile.splits * chunk + ends);
}

// What hopper_turns.cu is compiled for. It writes outputs, and reads floating-point activations where they are, through
// tensor maps.
inline bool turns_can_serve(const Linear& linear, int digits, bool floating) {
  bool outputs_are_eights = true;
  for (int i = 0; i < linear.weight_count; ++i) outputs_are_eights &= linear.weights[i].n % 8 == 0;
  const uintptr_t x_bits = reinterpret_cast<uintptr_t>(linear.x) | static_cast<uintptr_t>(linear.x_stride * 2);
  return linear.format == Format::k2Bit && digits == 1 && linear.dtype != Dtype::kFloat32 &&
         rows_are_aligned(linear, bytes_of_row(linear)) && outputs_are_eights &&
         !(floating && (x_bits % 16 != 0 || linear.x_stride < linear.k));
}

// Tiles of rows in whole turns of all multiprocessors, of `tiles` of them, each with so many tiles of tokens.
inline int whole_row_tiles(int tiles, int token_tiles, const Device& device) {
  const int64_t turns = int64_t{tiles} * token_tiles / device.multiprocessors;
  return static_cast<int>(turns * device.multiprocessors / token_tiles);
}

// In the unit of HopperCosts: of a call, a tile, and a chunk of its K; of the last two beside, and for each column.
struct TurnsCosts {
  int64_t call, tile, tile_column, chunk, chunk_column;
};
constexpr TurnsCosts kInt8Turns = {11792, 21316, 24, 2292, 27}, kFloatingTurns = {13000, 2600, 18, 2000, 40};

inline int64_t turns_cost(const Linear& linear, int64_t chunks, bool floating, const HopperTile& tile,
                          const Device& device) {
  const TurnsCosts& costs = floating ? kFloatingTurns : kInt8Turns;
  const auto of_turns = [&](int64_t rows, int columns) {
    const int64_t tiles = rows * hopper_token_tiles(linear, 1, columns);
    return (tiles + device.multiprocessors - 1) / device.multiprocessors *
           (costs.tile + costs.tile_column * columns + chunks * (costs.chunk + costs.chunk_column * columns));
  };
  const int rows = row_tiles(linear, 256).count;
  if (tile.last_columns == 0) return costs.call + of_turns(rows, tile.columns);
  const int whole = whole_row_tiles(rows, static_cast<int>(hopper_token_tiles(linear, 1, tile.columns)), device);
  return costs.call + of_turns(whole, tile.columns) + of_turns(rows - whole, tile.last_columns);
}

// What hopper.cu's tiles of 48 columns and of 192 rows are compiled for, and the costs of 16 columns fitted.
inline bool hopper_has_all_tiles(const Linear& linear) {
  return linear.format == Format::k2Bit && rows_are_aligned(linear, bytes_of_row(linear));
}

// The cheapest of the tiles that there are.
inline HopperTile hopper_tile(const Linear& linear, int digits, bool floating, const Device& device) {
  HopperTile best = {};
  int64_t best_cost = INT64_MAX;
  const int64_t chunks = chunks_of(linear.format, linear.k, 4);
  const auto consider = [&](int columns, int rows) {
    const int64_t tiles = row_tiles(linear, rows).count * hopper_token_tiles(linear, digits, columns);
    const int64_t most = floating || rows == 256 ? 1 : std::min<int64_t>(kMostSplits, chunks);
    for (int splits = 1; splits == 1 || (splits <= most && tiles * splits <= 2 * device.multiprocessors); ++splits) {
      const HopperTile tile = {columns, rows, splits, false, 0};
      if (received_bytes(tile, digits) > kMostReceivedBytes) continue;
      if (hopper_blocks_at_once(device, splits, 1) == 0) continue;  // a small share of a GPU
      const int64_t cost = hopper_cost(linear, digits, chunks, tiles * splits, floating, tile, device);
      if (cost < best_cost) best = tile, best_cost = cost;
    }
  };
  if (!hopper_is_light(linear.format, floating)) consider(128, 128);  // else 64 columns are faster
  const int64_t in_all = linear.m * digits;                           // columns
  const auto consider_few = [&](int rows) {
    consider(in_all <= 16 ? 16 : 32, rows);
    if (in_all > 32) consider(64, rows);
  };
  if (!floating) {
    consider_few(128);
    if (hopper_has_all_tiles(linear)) {
      if (in_all > 16) consider(16, 128);
      if (in_all > 32) consider(48, 128);
      consider_few(192);
    }
  }
  if (!turns_can_serve(linear, digits, floating)) {
    consider(128, 256);
    return best;
  }
  const auto consider_turns = [&](int columns, int last_columns) {
    const int64_t tiles = row_tiles(linear, 256).count * hopper_token_tiles(linear, 1, columns);
    // A block of hopper.cu with one tile of int8 activations ends sooner.
    const bool turns = floating || last_columns > 0 || tiles > device.multiprocessors;
    const HopperTile tile = {columns, 256, 1, turns, last_columns};
    const int64_t cost = turns_cost(linear, chunks, floating, tile, device);
    if (cost < best_cost) best = tile, best_cost = cost;
  };
  consider_turns(80, 0);
  consider_turns(128, 0);
  consider_turns(128, 80);
  if (!floating) {
    consider_turns(96, 0);
    consider_turns(128, 96);
    consider_turns(128, 64);
  }
  return best;
}

}  // namespace bitlab::cuda
