// Many columns on Hopper: its asynchronous tensor-core products (wgmma) run while the weights of the next are decoded.
//
//     block   two warpgroups of 64 * kRowTiles rows each, times kColumns columns
//     left    packed weights -> stages of the lane (weight_stages.cuh) -> registers: one shift and one mask for four
//     right   int8 activations of a chunk, in a ring of shared memory filled by bulk copies: the workspace has the very
//             layout that the product reads
//     cluster where there are too few tiles for all multiprocessors, blocks share a tile: each takes part of K, and
//             their sums meet in shared memory
//
// A product of 64 rows x 128 columns x 32 keeps the tensor cores busy for 64 cycles; its left operand is 16 codes a
// lane, 7 shifts and masks. Floating-point activations take the same way in values of two bytes (arrange.cu).
#include "hopper_outputs.cuh"
#include "launch.cuh"
#include "weight_stages.cuh"
#include "wgmma.cuh"

namespace bitlab::cuda {
namespace {

template <int kRowTiles>
constexpr int kWeightStages = kRowTiles == 1 ? 5 : 3;

// Shared memory beside the stages of activations.
template <int kRowTiles>
constexpr int kWeightBytes = kWeightStages<kRowTiles> * kGroups * 64 * kRowTiles * (kChunkBytes + 16);

// The warpgroups take turns at the tensor cores: one decodes while the other multiplies. Left alone they would do both
// at the same time. A group takes its turn when the other has passed it.
__device__ __forceinline__ void take_turn(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(kThreads) : "memory");
}
__device__ __forceinline__ void pass_turn(int group) {
  asm volatile("bar.arrive %0, %1;" ::"r"(1 + group), "n"(kThreads) : "memory");
}

// Value: int8_t, or what x is where activations stay in floating point; then 128 columns, no splits, ternary weights.
template <Format kFormat, int kColumns, int kRowTiles, bool kAligned, typename Value>
__global__ void __launch_bounds__(kThreads, kColumns <= 64 ? 2 : 1) hopper_kernel(const __grid_constant__ Hopper a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Layout = Chunk<kFormat>;
  constexpr int kRows = 64 * kGroups * kRowTiles, kWarpRows = 16 * kRowTiles;
  constexpr uint32_t kStageBytes = Layout::kHalfSteps * kColumns * 16;
  constexpr int kAhead = kWeightStages<kRowTiles>;
  constexpr bool kInt8 = std::is_same_v<Value, int8_t>;
  using Sum = std::conditional_t<kInt8, int, float>;
  constexpr int kStagesOfChunk = kInt8 ? 1 : 2;  // of activations
  // Products of a chunk that are begun together: as many as there are registers for their left operands.
  constexpr int kBatches = !kInt8 ? 4 : kFormat == Format::kBase3 || kRowTiles > 1 ? 2 : 1;
  constexpr int kBatchesOfStage = kBatches / kStagesOfChunk;
  constexpr bool kTakesTurns = kColumns > 64;  // else a turn would be shorter than its handing over
  constexpr uint32_t kWeightStage = kWarpRows * kRowStage<kAligned>;
  extern __shared__ __align__(1024) int8_t shared[];  // activations, then weights; in the end sums or outputs
  __shared__ __align__(8) uint64_t barriers[2 * kMostStages];
  __shared__ __align__(8) float column_scale[kColumns];
  __shared__ __align__(8) int column_sum[kColumns];

  const Linear& linear = a.linear;
  const Quantized& quantized = a.quantized;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int stages = a.stages, splits = static_cast<int>(gridDim.z), split = static_cast<int>(blockIdx.z);
  const int chunks = static_cast<int>(quantized.chunks);
  const int first_chunk = chunks * split / splits, end_chunk = chunks * (split + 1) / splits;
  const int64_t token_tile = blockIdx.x / a.tiles.count;
  const int64_t first_token = token_tile * quantized.tile_tokens;
  int64_t first_row;
  const Weight& weight =
      linear.weights[weight_of_tile(linear, a.tiles, static_cast<int>(blockIdx.x % a.tiles.count), kRows, &first_row)];
  const uint32_t ring = shared_address(shared), full = shared_address(barriers), empty = full + 8 * kMostStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) {
      init_barrier(full + 8 * i, 1);
      init_barrier(empty + 8 * i, kThreads / 32);
    }
    publish_barriers();
  }
  __syncthreads();

  const int count = end_chunk - first_chunk;
  const int8_t* from = quantized.q + (token_tile * chunks + first_chunk) * kStagesOfChunk * kStageBytes;
  const int fills = count * kStagesOfChunk;  // of stages
  // The next chunk of activations into `stage`. One thread.
  const auto fetch = [&](int stage) {
    arrive_and_expect(full + 8 * stage, kStageBytes);
    copy_bulk(ring + stage * kStageBytes, from, kStageBytes, full + 8 * stage);
    from += kStageBytes;
  };

  const int64_t warp_row = first_row + warp / 4 * 64 * kRowTiles + warp % 4 * 16;  // of its first row tile
  const uint32_t own = ring + stages * kStageBytes + warp * kAhead * kWeightStage + place_in_stage<kAligned>();
  const uint8_t* rows[2 * kRowTiles];
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) {
    const int64_t row = warp_row + i / 2 * 64 + i % 2 * 8 + lane / 4;
    rows[i] = weight.packed + min(row, weight.n - 1) * a.row_bytes;
  }
  int offset = first_chunk * kChunkBytes + lane % 4 * 16;  // of the next copy
  uint32_t copy_stage = own;
  const auto copy = [&] {
    if (offset < end_chunk * kChunkBytes)
#pragma unroll
      for (int j = 0; j < 2 * kRowTiles; ++j)
        copy_share<kAligned>(weight, a.row_bytes, rows[j], offset, copy_stage + j * 8 * kRowStage<kAligned>);
    end_copies();
    offset += kChunkBytes;
    copy_stage = copy_stage == own + (kAhead - 1) * kWeightStage ? own : copy_stage + kWeightStage;
  };
  uint32_t read_stage = own;
  Words<4> words[2 * kRowTiles];
  const auto read = [&] {
    wait_for_copies<kAhead - 2>();
    if constexpr (!kAligned) __syncwarp();
#pragma unroll
    for (int j = 0; j < 2 * kRowTiles; ++j)
      words[j] = staged_words<kAligned>(read_stage + j * 8 * kRowStage<kAligned>, shift_of_row<kAligned>(rows[j]));
    read_stage = read_stage == own + (kAhead - 1) * kWeightStage ? own : read_stage + kWeightStage;
  };

#pragma unroll 1
  for (int i = 0; i < kAhead - 1; ++i) copy();
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (threadIdx.x == 0)
    for (int i = 0; i < stages && i < fills; ++i) fetch(i);
  // What the sums of column threadIdx.x will need. It waits in a register where one is to spare.
  static_assert(kColumns <= kThreads);
  float scale = 0;
  int sum = 0;
  if (kInt8 && threadIdx.x < quantized.tile_tokens * quantized.digits) {
    const int64_t token = first_token + threadIdx.x / quantized.digits;
    if (token < linear.m) {
      scale = quantized.scale[token];
      sum = quantized.sum[first_token * quantized.digits + threadIdx.x];
    }
  }
  const auto keep_columns = [&] {
    if (threadIdx.x < kColumns) column_scale[threadIdx.x] = scale, column_sum[threadIdx.x] = sum;
  };
  if constexpr (kInt8 && kRowTiles > 1) keep_columns();

  const int group = warp / 4;
  if (kTakesTurns && group == 1) pass_turn(0);
  Sum sums[kRowTiles][kColumns / 2] = {};
  int stage = 0, phase = 0, free_stage = 0, free_phase = 0;
  read();
  for (int i = 0; i < count; ++i) {
    uint64_t columns = 0;
#pragma unroll
    for (int batch = 0; batch < kBatches; ++batch) {
      constexpr int kBatchWords = 4 / kBatches, kSteps = Layout::kPerByte * kBatchWords / (kInt8 ? 2 : 1);
      uint32_t left[kSteps][kRowTiles][4];
#pragma unroll
      for (int j = 0; j < 2 * kRowTiles; ++j)
#pragma unroll
        for (int w = 0; w < kBatchWords; ++w) {
          uint32_t codes[Layout::kPerByte];
          decode<kFormat>(words[j].word[batch * kBatchWords + w], codes);
#pragma unroll
          for (int c = 0; c < Layout::kPerByte; ++c) {
            const int r = w * Layout::kPerByte + c;
            if constexpr (kInt8) {
              left[r / 2][j / 2][r % 2 * 2 + j % 2] = codes[c];
            } else {
              to_pairs<Value>(codes[c], left[r][j / 2][j % 2], left[r][j / 2][2 + j % 2]);
            }
          }
        }
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
#pragma unroll
        for (int j = 0; j < kRowTiles; ++j) settle(left[step][j]);
      const bool first_of_stage = batch % kBatchesOfStage == 0, last_of_stage = (batch + 1) % kBatchesOfStage == 0;
      if (first_of_stage) {
        wait(full + 8 * stage, phase);
        columns = columns_descriptor(ring + stage * kStageBytes, kColumns * 16);
      }
      if constexpr (kTakesTurns) take_turn(group);
      begin_products();
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int j = 0; j < kRowTiles; ++j) {
          if constexpr (kInt8) {
            multiply_async<kColumns>(sums[j], left[step][j], columns);
          } else {
            multiply_async<Value>(sums[j], left[step][j], columns);
          }
        }
        columns += 2 * kColumns;
        if (step == 0 || step + 1 == kSteps) end_products();
      }
      // Meanwhile: the next weights, and activations into the stage before, which the other warpgroup has most likely
      // left too.
      if (batch + 1 == kBatches) {
        copy();
        if (i + 1 < count) read();
      }
      const int used = i * kStagesOfChunk + batch / kBatchesOfStage;  // stages, before this one
      if (last_of_stage && threadIdx.x == 0 && used >= 1 && used - 1 + stages < fills) {
        wait(empty + 8 * free_stage, free_phase);
        fetch(free_stage);
        if (++free_stage == stages) free_stage = 0, free_phase ^= 1;
      }
      wait_for_products<1>();
      if (kTakesTurns && (group == 0 || i + 1 < count || batch + 1 < kBatches)) pass_turn(1 - group);
      wait_for_products<0>();
      if (last_of_stage) {
        if (lane == 0) arrive(empty + 8 * stage);
        if (++stage == stages) stage = 0, phase ^= 1;
      }
    }
  }

  // From here on the stages are free. The sums of all blocks of the cluster meet, or those of one are written alone.
  if constexpr (kInt8 && kRowTiles == 1) keep_columns();
  __syncthreads();
  const auto write_pairs = [&](auto value) {
    const uint32_t outputs = ring + group * kColumns * kColumnBytes<kRowTiles>;
    stage_outputs<kFormat, kColumns, kRowTiles, decltype(value)>(a, weight, warp_row, sums, column_scale, column_sum,
                                                                 outputs);
    asm volatile("bar.sync %0, 128;" ::"r"(3 + group) : "memory");
    write_outputs<kColumns, kRowTiles>(weight, first_row + group * 64 * kRowTiles, first_token, linear.m, outputs);
  };
  if constexpr (kInt8) {
    if (splits == 1 && quantized.digits == 1 && linear.dtype != Dtype::kFloat32) {
      if (linear.dtype == Dtype::kBFloat16) {
        write_pairs(__nv_bfloat16());
      } else {
        write_pairs(__half());
      }
      return;
    }
  } else {
    write_pairs(Value());
    return;
  }

  if constexpr (kInt8) {
    constexpr int kStride = kRows + 4;  // of columns: without bank conflicts
    int (*partial)[kStride] = reinterpret_cast<int (*)[kStride]>(shared);
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4 * kRowTiles; ++i) {
        const int row = group * 64 * kRowTiles + i / 4 * 64 + warp % 4 * 16 + i / 2 % 2 * 8 + lane / 4;
        partial[8 * j + lane % 4 * 2 + i % 2][row] = sums[i / 4][4 * j + i % 4];
      }
    const Outputs outputs = {&weight, first_row, first_token, split, column_scale, column_sum};
    if (splits == 1) {
      __syncthreads();
      write_sums<kFormat, kRows, kStride, 1>(a, outputs, shared_address(shared));
      return;
    }
    sync_cluster();
    if (splits == 2) write_sums<kFormat, kRows, kStride, 2>(a, outputs, shared_address(shared));
    if (splits == 4) write_sums<kFormat, kRows, kStride, 4>(a, outputs, shared_address(shared));
    if (splits == 8) write_sums<kFormat, kRows, kStride, 8>(a, outputs, shared_address(shared));
    sync_cluster();  // the others may still read this block's sums
  }
#endif
}

int64_t token_tiles(const Hopper& a) { return (a.linear.m + a.quantized.tile_tokens - 1) / a.quantized.tile_tokens; }

// Blocks that run at once. Clusters do not fill the last places of the groups that multiprocessors are built in: of
// 132, clusters of 4 or 8 leave 12.
int64_t blocks_at_once(const Device& device, int splits, int resident) {
  const int64_t usable = splits <= 2 ? device.multiprocessors : device.multiprocessors * 10 / 11;
  return usable * resident / splits * splits;
}

// About the time that tiles of 128 * row_tiles rows take, in chunks of one row tile that a multiprocessor works
// through.
int64_t cost_of(const Hopper& a, const Device& device, int row_tiles_of_group, int splits, int resident) {
  const int64_t blocks = row_tiles(a.linear, 128 * row_tiles_of_group).count * token_tiles(a) * splits;
  const int64_t at_once = blocks_at_once(device, splits, resident);
  const int64_t waves = (blocks + at_once - 1) / at_once;
  const int64_t chunks = (a.quantized.chunks + splits - 1) / splits;
  const bool alone = blocks <= blocks_at_once(device, splits, 1);  // on its multiprocessor
  return waves * (chunks * row_tiles_of_group * (alone ? 1 : resident) + (splits == 1 ? 3 : 5));
}

// The best power of two for one row tile a warpgroup.
int splits_of(const Hopper& a, const Device& device, int resident) {
  int best = 1;
  for (int splits = 2; splits <= kMostSplits && splits <= a.quantized.chunks; splits *= 2)
    if (cost_of(a, device, 1, splits, resident) < cost_of(a, device, 1, best, resident)) best = splits;
  return best;
}

template <Format kFormat, int kColumns, int kRowTiles, typename Value = int8_t>
cudaError_t launch_kernel(Hopper a, const Device& device, bool aligned, int splits, void* stream) {
  constexpr int kRows = 64 * kGroups * kRowTiles, kResident = kColumns <= 64 ? 2 : 1;
  constexpr int kStageBytes = Chunk<kFormat>::kHalfSteps * kColumns * 16;
  a.tiles = row_tiles(a.linear, kRows);
  const int64_t tiles = a.tiles.count * token_tiles(a);
  const int resident = tiles * splits <= blocks_at_once(device, splits, 1) ? 1 : kResident;
  const int room = device.shared_memory / resident - kWeightBytes<kRowTiles> - 3072;
  const int64_t fills = (a.quantized.chunks + splits - 1) / splits * (std::is_same_v<Value, int8_t> ? 1 : 2);
  a.stages = room / kStageBytes < kMostStages ? room / kStageBytes : kMostStages;
  if (a.stages > fills) a.stages = static_cast<int>(fills);
  size_t shared = static_cast<size_t>(a.stages) * kStageBytes + kWeightBytes<kRowTiles>;
  const size_t in_the_end = static_cast<size_t>(kRows + 4) * kColumns * sizeof(int);
  if (shared < in_the_end) shared = in_the_end;
  const auto kernel = aligned ? hopper_kernel<kFormat, kColumns, kRowTiles, true, Value>
                              : hopper_kernel<kFormat, kColumns, kRowTiles, false, Value>;
  return launch(kernel, dim3(static_cast<unsigned>(tiles), 1, static_cast<unsigned>(splits)), kThreads, shared, stream,
                true, splits, a);
}

template <Format kFormat, typename Value>
cudaError_t launch_floating(const Hopper& a, const Device& device, bool aligned, void* stream) {
  return cost_of(a, device, 2, 1, 1) < cost_of(a, device, 1, 1, 1)
             ? launch_kernel<kFormat, 128, 2, Value>(a, device, aligned, 1, stream)
             : launch_kernel<kFormat, 128, 1, Value>(a, device, aligned, 1, stream);
}

template <Format kFormat>
cudaError_t launch_format(const Hopper& a, const Device& device, bool aligned, void* stream) {
  if (a.quantized.floating) {
    if constexpr (kFormat != Format::kInt4)
      return a.linear.dtype == Dtype::kBFloat16 ? launch_floating<kFormat, __nv_bfloat16>(a, device, aligned, stream)
                                                : launch_floating<kFormat, __half>(a, device, aligned, stream);
    return cudaErrorInvalidValue;
  }
  const int columns = a.quantized.tile_columns, splits = splits_of(a, device, columns <= 64 ? 2 : 1);
  if (columns == 32) return launch_kernel<kFormat, 32, 1>(a, device, aligned, splits, stream);
  if (columns == 64) return launch_kernel<kFormat, 64, 1>(a, device, aligned, splits, stream);
  return cost_of(a, device, 2, 1, 1) < cost_of(a, device, 1, splits, 1)
             ? launch_kernel<kFormat, 128, 2>(a, device, aligned, 1, stream)
             : launch_kernel<kFormat, 128, 1>(a, device, aligned, splits, stream);
}

}  // namespace

int hopper_columns(int64_t columns) { return columns <= 32 ? 32 : columns <= 64 ? 64 : 128; }

int launch_hopper(const Linear& linear, const Quantized& quantized, const Device& device, void* stream) {
  const int64_t row_bytes = bytes_of_row(linear);
  const Hopper a = {linear, quantized, {}, row_bytes, 0};
  const bool aligned = rows_are_aligned(linear, row_bytes);
  switch (linear.format) {
    case Format::k2Bit: return launch_format<Format::k2Bit>(a, device, aligned, stream);
    case Format::kBase3: return launch_format<Format::kBase3>(a, device, aligned, stream);
    default: return launch_format<Format::kInt4>(a, device, aligned, stream);
  }
}

}  // namespace bitlab::cuda
