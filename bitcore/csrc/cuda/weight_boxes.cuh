// Packed weights that one thread brings to shared memory for a whole block (Hopper): boxes of a chunk of all its rows.
//
//     stage   [rows][64 bytes]: what a warp reads at once, 16 bytes of each lane, lies together
//     full    a barrier for each stage; so is `empty`, at which each warp of the products arrives
#pragma once

#include "weight_stages.cuh"
#include "wgmma.cuh"

namespace bitlab::cuda {

constexpr int kBoxStages = 3;  // chunks of weights that are on their way

// The stages and barriers in shared memory, and where a thread is among them.
template <int kRows>
struct WeightBoxes {
  static constexpr int kStageBytes = kRows * kChunkBytes, kBytes = kBoxStages * kStageBytes;
  static constexpr int kBarriers = 2 * kBoxStages;
  uint32_t stages, full;
  int stage = 0, phase = 0;

  __device__ __forceinline__ WeightBoxes(uint32_t stages, uint32_t barriers) : stages(stages), full(barriers) {}

  __device__ __forceinline__ uint32_t empty(int stage) const { return full + 8 * (kBoxStages + stage); }

  // One thread.
  __device__ __forceinline__ void init_barriers(int warps) const {
#pragma unroll
    for (int i = 0; i < kBoxStages; ++i) {
      init_barrier(full + 8 * i, 1);
      init_barrier(empty(i), warps);
    }
  }

  __device__ __forceinline__ void advance() {
    if (++stage == kBoxStages) stage = 0, phase ^= 1;
  }

  // Of `map`, from `row` and from byte `offset` of the rows. One thread, for all chunks.
  __device__ __forceinline__ void fetch(const void* map, int row, int offset) {
    wait(empty(stage), phase ^ 1);
    arrive_and_expect(full + 8 * stage, kStageBytes);
    copy_box(stages + stage * kStageBytes, map, row, offset, full + 8 * stage);
    advance();
  }

  // The next chunk: 16 bytes of each row of this lane.
  __device__ __forceinline__ void read(Words<4> (&words)[kRows / 64]) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    wait(full + 8 * stage, phase);
#pragma unroll
    for (int i = 0; i < kRows / 64; ++i) {
      const int row = warp / 4 * (kRows / 2) + warp % 4 * 16 + i / 2 * 64 + i % 2 * 8 + lane / 4;
      words[i] = load_shared_words(stages + stage * kStageBytes + row * kChunkBytes + lane % 4 * 16);
    }
  }

  // That chunk's words have become codes: another one takes its stage.
  __device__ __forceinline__ void leave() {
    if (threadIdx.x % 32 == 0) arrive(empty(stage));
    advance();
  }
};

}  // namespace bitlab::cuda
