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

constexpr int kBeside = 8;  // tiles of tokens that are computed side by side

// Chunks of weights that are on their way. A lane reads a stage to registers before it copies into it again.
template <int kRowTiles>
constexpr int kWeightStages = kRowTiles == 1 ? 4 : 3;

template <int kRowTiles, bool kAligned>
constexpr int kWeightBytes = kWeightStages<kRowTiles> * kGroups * 64 * kRowTiles * kRowStage<kAligned>;

// A batch is decoded while the one before is multiplied; with few columns there is too little to multiply for that to
// pay.
template <int kColumns>
constexpr bool kOverlaps = kColumns == 128;

// A chunk is multiplied in batches, each with a stage of activations: as many as there are registers for their codes.
template <Format kFormat, int kColumns, typename Value>
constexpr int kBatches = !std::is_same_v<Value, int8_t>                     ? 4
                         : kOverlaps<kColumns> || kFormat == Format::kBase3 ? 2
                                                                            : 1;

template <Format kFormat, int kColumns, typename Value>
constexpr uint32_t kStageBytes =
    Chunk<kFormat>::kHalfSteps * kColumns * 16 * sizeof(Value) / kBatches<kFormat, kColumns, Value>;

template <int kColumns>
constexpr int kResident = kColumns <= 64 ? 2 : 1;  // blocks on a multiprocessor

// Value: int8_t, or what x is where activations stay in floating point; then 128 columns, no splits, ternary weights.
template <Format kFormat, int kColumns, int kRowTiles, bool kAligned, typename Value>
__global__ void __launch_bounds__(kThreads, kResident<kColumns>) hopper_kernel(const __grid_constant__ Hopper a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Layout = Chunk<kFormat>;
  constexpr int kRows = 64 * kGroups * kRowTiles, kWarpRows = 16 * kRowTiles;
  constexpr bool kInt8 = std::is_same_v<Value, int8_t>;
  using Sum = std::conditional_t<kInt8, int, float>;
  constexpr uint32_t kStage = kStageBytes<kFormat, kColumns, Value>;
  constexpr int kSwizzle = hopper_swizzle(kFormat);
  constexpr int kAhead = kWeightStages<kRowTiles>;
  constexpr uint32_t kWeightStage = kWarpRows * kRowStage<kAligned>;
  extern __shared__ __align__(1024) int8_t shared[];  // activations, then weights; in the end sums or outputs
  __shared__ __align__(8) uint64_t barriers[2 * kMostStages];

  const Linear& linear = a.linear;
  const Quantized& quantized = a.quantized;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int stages = a.stages, splits = static_cast<int>(gridDim.z), split = static_cast<int>(blockIdx.z);
  const int chunks = static_cast<int>(quantized.chunks);
  const int first_chunk = chunks * split / splits, end_chunk = chunks * (split + 1) / splits;
  // Tiles of tokens are computed side by side, so that memory is asked for a weight once for all of them.
  const int token_group = static_cast<int>(blockIdx.x) / (kBeside * a.tiles.count);
  const int place = static_cast<int>(blockIdx.x) % (kBeside * a.tiles.count);
  const int beside = min(kBeside, a.token_tiles - token_group * kBeside);
  const int64_t token_tile = token_group * kBeside + place % beside;
  const int64_t first_token = token_tile * quantized.tile_tokens;
  int64_t first_row;
  const Weight& weight = linear.weights[weight_of_tile(linear, a.tiles, place / beside, kRows, &first_row)];
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
  const int8_t* from = quantized.q + (token_tile * chunks + first_chunk) * kBatches<kFormat, kColumns, Value> * kStage;
  int left_to_fetch = count * kBatches<kFormat, kColumns, Value>;
  // The next activations into `stage`. One thread.
  const auto fetch = [&](int stage) {
    arrive_and_expect(full + 8 * stage, kStage);
    copy_bulk(ring + stage * kStage, from, kStage, full + 8 * stage);
    from += kStage;
    --left_to_fetch;
  };

  const int64_t warp_row = first_row + warp / 4 * 64 * kRowTiles + warp % 4 * 16;  // of its first row tile
  const uint32_t own = ring + stages * kStage + warp * kAhead * kWeightStage + place_in_stage<kAligned>();
  const uint8_t* rows[2 * kRowTiles];
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) {
    const int64_t row = warp_row + i / 2 * 64 + i % 2 * 8 + lane / 4;
    rows[i] = weight.packed + min(row, weight.n - 1) * a.row_bytes;
  }
  int offset = first_chunk * kChunkBytes + lane % 4 * 16;  // of the next copy
  uint32_t copy_stage = own;
  const auto copy = [&] {
    if constexpr (!kAligned) __syncwarp();  // lanes have read their neighbours' bytes
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
    wait_for_copies<kAhead - 1>();
    if constexpr (!kAligned) __syncwarp();
#pragma unroll
    for (int j = 0; j < 2 * kRowTiles; ++j)
      words[j] = staged_words<kAligned>(read_stage + j * 8 * kRowStage<kAligned>, shift_of_row<kAligned>(rows[j]));
    read_stage = read_stage == own + (kAhead - 1) * kWeightStage ? own : read_stage + kWeightStage;
  };

#pragma unroll 1
  for (int i = 0; i < kAhead; ++i) copy();
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (threadIdx.x == 0)
    for (int i = 0; i < stages && left_to_fetch > 0; ++i) fetch(i);
  // What the sums of column threadIdx.x will need.
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

  Sum sums[kRowTiles][kColumns / 2] = {};
  constexpr int kBatchesOfChunk = kBatches<kFormat, kColumns, Value>, kBatchWords = 4 / kBatchesOfChunk;
  constexpr int kSteps = Layout::kPerByte * kBatchWords / (kInt8 ? 2 : 1);
  uint32_t left[kOverlaps<kColumns> ? 2 : 1][kSteps][kRowTiles][4];
  int stage = 0, phase = 0, last_stage = 0, free_stage = 0, free_phase = 0;
  read();
  for (int i = 0; i < count; ++i) {
#pragma unroll
    for (int batch = 0; batch < kBatchesOfChunk; ++batch) {
      auto& codes_of = left[kOverlaps<kColumns> ? batch % 2 : 0];
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
              codes_of[r / 2][j / 2][r % 2 * 2 + j % 2] = codes[c];
            } else {
              to_pairs<Value>(codes[c], codes_of[r][j / 2][j % 2], codes_of[r][j / 2][2 + j % 2]);
            }
          }
        }
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
#pragma unroll
        for (int j = 0; j < kRowTiles; ++j) settle(codes_of[step][j]);
      wait(full + 8 * stage, phase);
      const uint64_t columns = columns_descriptor<kSwizzle>(ring + stage * kStage);
      begin_products();
#pragma unroll
      for (int j = 0; j < kRowTiles; ++j)
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          // 32 bytes further on, or eight times kColumns rows.
          constexpr int kRowSteps = (1 << kSwizzle) / 2;
          const uint64_t step_columns = columns + step / kRowSteps * (kColumns << kSwizzle) + step % kRowSteps * 2;
          if constexpr (kInt8) {
            multiply_async<kColumns>(sums[j], codes_of[step][j], step_columns);
          } else {
            multiply_async<Value>(sums[j], codes_of[step][j], step_columns);
          }
        }
      end_products();
      // Meanwhile: the next weights, and activations into a stage that the other warpgroup has most likely left too.
      if (batch + 1 == kBatchesOfChunk) {  // all words have become codes
        copy();
        if (i + 1 < count) read();
      }
      const int before = i * kBatchesOfChunk + batch;  // batches
      if (threadIdx.x == 0 && before >= (kOverlaps<kColumns> ? 2 : 1) && left_to_fetch > 0) {
        wait(empty + 8 * free_stage, free_phase);
        fetch(free_stage);
        if (++free_stage == stages) free_stage = 0, free_phase ^= 1;
      }
      wait_for_products<kOverlaps<kColumns> ? 1 : 0>();
      if (lane == 0 && (!kOverlaps<kColumns> || before > 0))
        arrive(empty + 8 * (kOverlaps<kColumns> ? last_stage : stage));
      last_stage = stage;
      if (++stage == stages) stage = 0, phase ^= 1;
    }
  }
  wait_for_products<0>();

  // From here on the stages are free. The sums of all blocks of the cluster meet, or those of one are written alone.
  __syncthreads();
  constexpr int kStride = kRows + 4;  // of columns of sums: without bank conflicts
  auto* column_scale = reinterpret_cast<float*>(shared + kStride * kColumns * sizeof(int));
  auto* column_sum = reinterpret_cast<int*>(column_scale + kColumns);
  if (threadIdx.x < kColumns) column_scale[threadIdx.x] = scale, column_sum[threadIdx.x] = sum;
  __syncthreads();
  const auto write_pairs = [&](auto value) {
    const int group = warp / 4;
    const uint32_t outputs = ring + group * kColumns * kColumnBytes<kRowTiles>;
    stage_outputs<kFormat, kColumns, kRowTiles, decltype(value)>(a, weight, warp_row, sums, column_scale, column_sum,
                                                                 outputs);
    asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
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
    int (*partial)[kStride] = reinterpret_cast<int (*)[kStride]>(shared);
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4 * kRowTiles; ++i) {
        const int row = warp / 4 * 64 * kRowTiles + i / 4 * 64 + warp % 4 * 16 + i / 2 % 2 * 8 + lane / 4;
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
  constexpr int kRows = 64 * kGroups * kRowTiles, kStage = kStageBytes<kFormat, kColumns, Value>;
  a.tiles = row_tiles(a.linear, kRows);
  a.token_tiles = static_cast<int>(token_tiles(a));
  const int64_t blocks = static_cast<int64_t>(a.tiles.count) * a.token_tiles;
  const int resident = blocks * splits <= blocks_at_once(device, splits, 1) ? 1 : kResident<kColumns>;
  const int weight_bytes = aligned ? kWeightBytes<kRowTiles, true> : kWeightBytes<kRowTiles, false>;
  const int room = device.shared_memory / resident - weight_bytes - 3072;
  const int64_t fills = (a.quantized.chunks + splits - 1) / splits * kBatches<kFormat, kColumns, Value>;
  a.stages = room / kStage < kMostStages ? room / kStage : kMostStages;
  if (a.stages > fills) a.stages = static_cast<int>(fills);
  size_t shared = static_cast<size_t>(a.stages) * kStage + weight_bytes;
  const size_t in_the_end = static_cast<size_t>(kRows + 4 + 2) * kColumns * sizeof(int);
  if (shared < in_the_end) shared = in_the_end;
  const auto kernel = aligned ? hopper_kernel<kFormat, kColumns, kRowTiles, true, Value>
                              : hopper_kernel<kFormat, kColumns, kRowTiles, false, Value>;
  return launch(kernel, dim3(static_cast<unsigned>(blocks), 1, static_cast<unsigned>(splits)), kThreads, shared, stream,
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
  const Hopper a = {linear, quantized, {}, row_bytes, 0, 0};
  const bool aligned = rows_are_aligned(linear, row_bytes);
  switch (linear.format) {
    case Format::k2Bit: return launch_format<Format::k2Bit>(a, device, aligned, stream);
    case Format::kBase3: return launch_format<Format::kBase3>(a, device, aligned, stream);
    default: return launch_format<Format::kInt4>(a, device, aligned, stream);
  }
}

}  // namespace bitlab::cuda
