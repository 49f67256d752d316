// Which rows of which weight a block computes: the weights of a call are cut into tiles of rows, counted through.
#pragma once

#include "linear.h"

namespace bitlab::cuda {

struct RowTiles {
  int count;
  int first[kMaxWeights];  // tile at which a weight begins
  bool even;               // one weight, and all its tiles are full
};

inline RowTiles row_tiles(const Linear& linear, int64_t rows) {
  RowTiles tiles = {};
  for (int i = 0; i < linear.weight_count; ++i) {
    tiles.first[i] = tiles.count;
    tiles.count += static_cast<int>((linear.weights[i].n + rows - 1) / rows);
  }
  tiles.even = linear.weight_count == 1 && linear.weights[0].n % rows == 0;
  return tiles;
}

#ifdef __CUDACC__
// The weight that `tile` belongs to; `row` becomes its first row.
template <typename Row>
__device__ __forceinline__ int weight_of_tile(const Linear& linear, const RowTiles& tiles, int tile, int rows,
                                              Row* row) {
  int index = 0;
  while (!tiles.even && index + 1 < linear.weight_count && tile >= tiles.first[index + 1]) ++index;
  *row = static_cast<Row>(tile - tiles.first[index]) * rows;
  return index;
}
#endif

}  // namespace bitlab::cuda
