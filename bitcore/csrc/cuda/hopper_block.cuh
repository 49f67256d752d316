// What a block of hopper.cu or hopper_turns.cu is made of: warpgroups that multiply, warps that help them, and the
// barriers at which they meet.
#pragma once

#include <cuda.h>

#include "hopper_tile.h"
#include "rows.cuh"

namespace bitlab::cuda {
namespace {

// Where a whole warpgroup helps those of the products: its threads, and registers of a thread of it and of theirs.
constexpr int kHelpingGroup = 128, kRegistersOfHelpers = 24, kRegistersOfProducts = 240;
constexpr int kMostStages = 10;
constexpr int kBeside = 8;  // tiles of tokens that are computed side by side

struct Hopper {
  CUtensorMap packed[kMaxWeights];  // where weights come by boxes
  Linear linear;
  Quantized quantized;
  RowTiles tiles;
  int row_bytes;
  int stages;  // of activations
  int token_tiles;
  int splits, own;                  // blocks that share K, and own_eights of each
  int split_chunks, longer_splits;  // of the splits, so many are a chunk longer
  uint32_t received_bytes;          // of shared memory, for sums of other blocks
};

// What a block's sums become outputs with.
template <int kRows, int kColumns>
struct Factors {
  float row_scale[kRows];
  float token_scale[kColumns];
  int column_sum[kColumns];
};

// The same from some column on.
struct FactorsOfColumns {
  const float *row_scale, *token_scale;
  const int* column_sum;
};

// Named barriers, which some announce and others wait for: the barriers in shared memory are initialized; the factors
// are there; all sums are.
constexpr int kInitialized = 0, kFactorsThere = 4, kSumsThere = 5;

template <int kBarrier, int kCount>
__device__ __forceinline__ void announce() {
  asm volatile("barrier.cta.arrive %0, %1;" ::"n"(kBarrier), "n"(kCount) : "memory");
}
template <int kBarrier, int kCount>
__device__ __forceinline__ void synchronize() {
  asm volatile("barrier.cta.sync %0, %1;" ::"n"(kBarrier), "n"(kCount) : "memory");
}

// Waits for the threads of this warpgroup.
__device__ __forceinline__ void synchronize_group(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
}

}  // namespace
}  // namespace bitlab::cuda
