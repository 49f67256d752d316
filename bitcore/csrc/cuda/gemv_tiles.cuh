// The tiles of rows that gemv.cu multiplies, and their way to shared memory.
#pragma once

#include "async_copy.cuh"
#include "bulk_copy.cuh"
#include "linear.h"
#include "rows.cuh"

namespace bitlab::cuda {

constexpr int kGroups = 2, kWarps = 8, kThreads = 32 * kWarps;  // warps and threads of a group
constexpr int kRows = 16;                                       // of a tile
constexpr int kSlots = 2;                                       // tiles in shared memory, and their sums
constexpr int kMostRounds = 2;                                  // of quantizing, a word's share of K for each thread
constexpr int kBehindTile = 144;                                // bytes that lanes may read behind a tile's last row

constexpr int kPerByte = weights_per_byte(Format::kBase3), kPerWord = 4 * kPerByte;
constexpr int kPairOfWords = 2 * kPerByte * 16;  // bytes of a column's activations, of four lanes

template <int kDigits>
constexpr int kColumnsOf = 2 * kDigits;

struct Gemv {
  Linear linear;
  RowTiles tiles;
  int row_bytes;
  int lane_words;  // W
  int tile_bytes;  // of shared memory
  bool x_is_aligned;
};

// All threads of a group.
__device__ __forceinline__ void synchronize_group(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(kThreads) : "memory");
}

// The tiles of a group on their way to its slots: on Hopper by one thread's bulk copies, else by all threads.
struct TileCopies {
  const Gemv& a;
  int tile;                  // that is copied next
  uint32_t slots, barriers;  // of the group
  int group, thread;         // the thread's place in the group

  __device__ __forceinline__ TileCopies(const Gemv& a, int group, int thread, uint32_t slots, uint32_t barriers)
      : a(a), tile(first_tile(group)), slots(slots), barriers(barriers), group(group), thread(thread) {
#if __CUDA_ARCH__ >= 900
    if (thread == 0) {
      for (int i = 0; i < kSlots; ++i) init_barrier(barriers + 8 * i, 1);
      publish_barriers();
    }
#endif
  }

  // Neighbouring tiles are those of different multiprocessors.
  __device__ __forceinline__ static int first_tile(int group) {
    return static_cast<int>(blockIdx.x + group * gridDim.x);
  }
  __device__ __forceinline__ static int tile_step() { return static_cast<int>(gridDim.x) * kGroups; }

  // Brings the next tile nearer.
  __device__ __forceinline__ void prefetch() const {
    if (thread != 0 || tile >= a.tiles.count) return;
    int bytes;
    const uint8_t* from = find(&bytes);
    prefetch_to_l2(from, bytes);
  }

  // All threads of the group, which have left the slot.
  __device__ __forceinline__ void copy(int slot) {
    if (tile < a.tiles.count) {
      const uint32_t to = slots + slot * a.tile_bytes;
      int bytes;
      const uint8_t* from = find(&bytes);
      const int whole = bytes & ~15;
#if __CUDA_ARCH__ >= 900
      if (thread == 0) {
        copy_bytes(to, from, whole, bytes, 1);
        arrive_and_expect(barriers + 8 * slot, whole);
        if (whole > 0) copy_bulk(to, from, whole, barriers + 8 * slot);
      }
#else
      for (int i = 16 * thread; i < whole; i += 16 * kThreads) copy_16_bytes(to + i, from + i);
      copy_bytes(to, from, whole + thread, bytes, kThreads);
#endif
      tile += tile_step();
    }
#if __CUDA_ARCH__ < 900
    end_copies();
#endif
  }

  // The same threads. parity: whether the slot has had an odd number of tiles before.
  __device__ __forceinline__ void wait_for(int slot, uint32_t parity) const {
#if __CUDA_ARCH__ >= 900
    wait(barriers + 8 * slot, parity);
#else
    wait_for_copies<kSlots - 1>();
    synchronize_group(group);
#endif
  }

 private:
  __device__ __forceinline__ const uint8_t* find(int* bytes) const {
    int64_t n;
    const Weight& weight = a.linear.weights[weight_of_tile(a.linear, a.tiles, tile, kRows, &n)];
    *bytes = static_cast<int>(min(weight.n - n, int64_t{kRows})) * a.row_bytes;
    return weight.packed + n * a.row_bytes;
  }

  // The last bytes of a weight, which no copy of 16 may bring.
  __device__ __forceinline__ static void copy_bytes(uint32_t to, const uint8_t* from, int begin, int end, int step) {
#pragma unroll 1
    for (int i = begin; i < end; i += step) {
      const uint32_t byte = from[i];
      asm volatile("st.shared.u8 [%0], %1;" ::"r"(to + i), "r"(byte) : "memory");
    }
  }
};

}  // namespace bitlab::cuda
