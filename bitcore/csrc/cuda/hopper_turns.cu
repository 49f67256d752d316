// Many columns on Hopper, in as many blocks as there are multiprocessors: each computes one tile after the other.
//
//     warpgroups 0, 1   128 rows each, times the columns of a tile; weights are copied on into the next one
//     warp 8            activations of all its tiles, into a ring as far ahead as there is room: int8 ones as they lie,
//                       floating-point ones from x as it is, through a tensor map
//     warps 10, 11      outputs of a warpgroup each, from shared memory to memory, while the next tile is multiplied
//
// What whole turns of all multiprocessors leave over is cut into tiles of fewer columns, so that all get a share of it.
// Products of a tile of 128 columns take 33,300 cycles with K of 4,096, 32,768 at the tensor cores' full rate.
#include <algorithm>

#include "hopper_products.cuh"
#include "hopper_tile.h"
#include "launch.cuh"
#include "outputs.h"
#include "tensor_map.h"
#include "turns_copies.cuh"

namespace bitlab::cuda {
namespace {

constexpr Format kFormat = Format::k2Bit;
constexpr int kBlock = kThreads + kHelpingGroup;
constexpr int kMostSlices = 4;  // of a tile's outputs
constexpr int kWeights = kThreads / 32 * kAhead * static_cast<int>(kWeightStage);

// A warpgroup. Tiles take turns with two sets of factors: a warp may be ahead of the others' outputs.
template <typename Shape, Outputs kOutputs, typename OfBlock>
__device__ __forceinline__ void multiply(const Turns& a, const Ring& ring, WeightCopies<!Shape::kInt8>& weights,
                                         int group, uint32_t outputs, OfBlock (&all_factors)[2]) {
  using Value = typename Shape::Value;
  constexpr bool kInt8 = Shape::kInt8;
  constexpr int kBatches = Shape::kBatches, kWords = 4 / kBatches;
  constexpr int kSteps = weights_per_byte(kFormat) * kWords / (kInt8 ? 2 : 1);
  const Linear& linear = a.linear;
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32;
  int stage = 0, phase = 0, written_phase = 1;
  for_each_tile<Shape>(a, [&](int tile, auto tile_columns) {
    constexpr int kTile = decltype(tile_columns)::value;
    OfBlock& factors = all_factors[written_phase];
    const Weight* weight;
    int64_t first_row;
    const auto copy_factors = [&] {
      const Place place = place_of(a, tile);
      weight = &weight_of(a, place, &first_row);
      const int64_t token = int64_t{place.token_tile} * kTile + thread;
      const int row = group * kRowsOfGroup + thread;
      if (first_row + row < weight->n)
        copy_4_bytes(shared_address(&factors.row_scale[row]), weight->scale + (first_row + row) * weight->scale_stride);
      if (kInt8 && thread < kTile && token < linear.m) {
        copy_4_bytes(shared_address(&factors.token_scale[thread]), a.quantized.scale + token);
        copy_4_bytes(shared_address(&factors.column_sum[thread]), a.quantized.sum + token);
      }
    };
    typename Shape::Sum sums[kRowTiles][kTile / 2] = {};
    int last_stage = -1;  // that products may still read
    const auto leave_last_stage = [&] {
      wait_for_products<1>();
      if (lane == 0 && last_stage >= 0) arrive(ring.empty + 8 * last_stage);
      last_stage = stage;
    };
    Words<4> words[2 * kRowTiles];
    uint32_t left[kRowTiles][kSteps][4];
#pragma unroll
    for (int j = 0; j < kRowTiles; ++j) {
      if constexpr (kInt8) {
        weights.template read<kAhead - 1>(j, words);
      } else {
        weights.read_piece(0, j, words);
      }
    }
#pragma unroll 1
    for (int i = 0; i < a.chunks; ++i) {
#pragma unroll
      for (int batch = 0; batch < kBatches; ++batch) {
        const uint32_t activations = columns_at(ring.activations + stage * Shape::kStage);
        // A warp waits wherever it starts a product, so it starts those of one row tile and decodes for the other.
#pragma unroll
        for (int j = 0; j < kRowTiles; ++j) {
          if constexpr (kInt8) {
            decode_rows<kFormat, Value, kWords>(words[2 * j], words[2 * j + 1], batch * kWords, left[j]);
#pragma unroll
            for (int step = 0; step < kSteps; ++step) settle(left[j][step]);
          } else {
#pragma unroll
            for (int step = 0; step < kSteps; ++step)
              decode_in_order(words[2 * j].word[step], words[2 * j + 1].word[step], left[j][step]);
          }
          if (j == 0) wait(ring.full + 8 * stage, phase);
          begin_products();
          multiply_rows<kFormat, Value, kTile>(sums[j], sums[j], left[j], activations);
          end_products();
          if (i == 0 && batch == 0 && j == 1) copy_factors();
          if constexpr (!kInt8) {
            weights.read_piece((batch + 1) % kBatches, j, words);
            if (batch == 2 && j == 1) weights.copy();  // all words have been read
          } else if (batch + 1 == kBatches) {
            if (i + 1 < a.chunks) weights.template read<kAhead - 2>(j, words);
            if (j == 1) weights.copy();
          }
          if (j == 0) {
            leave_last_stage();
          } else {
            wait_for_products<1>();
          }
        }
        if (++stage == a.stages) stage = 0, phase ^= 1;
      }
    }
    wait_for_products<0>();
    if (lane == 0) arrive(ring.empty + 8 * last_stage);
    if (a.chunks > 1) {  // the factors came with the weights behind the first chunk
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    synchronize_group(group);
    wait(ring.written, written_phase);
    written_phase ^= 1;
    uint32_t staged = ring.staged;
    const auto slice_is_staged = [&] {
      publish_to_copies();
      __syncwarp();
      if (lane == 0) arrive(staged);
      staged += 8;
    };
    const auto stage_as = [&](auto value) {
      visit_plain<kOutputs>(*weight, [&](auto is_plain) {
        stage_outputs<kFormat, kTile, kRowTiles, decltype(is_plain)::value, decltype(value)>(
            *weight, first_row, sums, factors, outputs, [] {}, slice_is_staged);
      });
    };
    if constexpr (!kInt8) {
      stage_as(Value());
    } else if (kOutputs == Outputs::kBFloat16 || (kOutputs == Outputs::kAny && linear.dtype == Dtype::kBFloat16)) {
      stage_as(__nv_bfloat16());
    } else {
      stage_as(__half());
    }
  });
  wait_for_copies<0>();
}

// Outputs are of two bytes.
template <typename Shape, Outputs kOutputs>
__global__ void __launch_bounds__(kBlock, 1) hopper_turns_kernel(const __grid_constant__ Turns a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kBarriersOfGroup = kMostSlices + 1;
  extern __shared__ __align__(1024) int8_t shared[];  // activations, weights, outputs
  __shared__ __align__(8) uint64_t barriers[2 * kMostStages + kGroups * kBarriersOfGroup];
  __shared__ __align__(16) Factors<kRows, Shape::kColumns> factors[kGroups][2];

  const int warp = threadIdx.x / 32;
  const bool helps = warp >= kThreads / 32;
  const int group = helps ? warp % 4 - 2 : warp / 4;
  Ring ring;
  ring.activations = in_register(shared_address(shared));
  ring.full = in_register(shared_address(barriers));
  ring.empty = ring.full + 8 * kMostStages;
  ring.staged = ring.empty + 8 * kMostStages + 8 * group * kBarriersOfGroup;
  ring.written = ring.staged + 8 * kMostSlices;
  const uint32_t weights = ring.activations + a.stages * Shape::kStage;
  const uint32_t outputs = weights + kWeights + group * static_cast<int>(kOutputBytes<Shape::kColumns, kRowTiles>);
  Place first = place_of(a, static_cast<int>(blockIdx.x));  // while the warps wait for each other's registers
  first = {in_register(first.row_tile), in_register(first.token_tile)};
  if (helps) {
    decrease_registers<kRegistersOfHelpers>();
    if (warp == kThreads / 32) {
      if (threadIdx.x == kThreads) {
        for (int i = 0; i < kMostStages; ++i) {
          init_barrier(ring.full + 8 * i, 1);
          init_barrier(ring.empty + 8 * i, kThreads / 32);
        }
        for (int i = 0; i < kGroups * kBarriersOfGroup; ++i)
          init_barrier(ring.empty + 8 * (kMostStages + i), i % kBarriersOfGroup < kMostSlices ? 4 : 1);
        publish_barriers();
      }
      __syncwarp();
      announce<kInitialized, kBlock>();
      if (threadIdx.x == kThreads) fetch_activations<Shape>(a, ring);
    } else {
      synchronize<kInitialized, kBlock>();
      if (group >= 0 && threadIdx.x % 32 == 0) write_outputs<Shape>(a, ring, group, outputs);
    }
  } else {
    increase_registers<kRegistersOfProducts>();
    // What runs before may have written the weights, where no kernel of ours stands between.
    if constexpr (!Shape::kInt8) wait_for_previous_kernel();
    WeightCopies<!Shape::kInt8> copies(a, first, weights + warp * kAhead * kWeightStage + place_in_stage<true>());
#pragma unroll 1
    for (int i = 0; i < kAhead; ++i) copies.copy();
    synchronize<kInitialized, kBlock>();
    wait_for_previous_kernel();
    let_next_kernel_start();
    multiply<Shape, kOutputs>(a, ring, copies, group, outputs, factors[group]);
  }
#endif
}

template <typename Shape>
cudaError_t map_all(Turns* a) {
  const Linear& linear = a->linear;
  cudaError_t error = cudaSuccess;
  if (!Shape::kInt8) {
    const auto map_x = [&](int tokens, CUtensorMap* map) {
      return map_boxes(const_cast<void*>(linear.x), linear.dtype, linear.m, linear.k, linear.x_stride, tokens, map);
    };
    error = map_x(Shape::kColumns, &a->x);
    if (error == cudaSuccess && Shape::kLastColumns > 0) error = map_x(Shape::kLastColumns, &a->x_of_last);
  }
  for (int i = 0; i < linear.weight_count && error == cudaSuccess; ++i) {
    const Weight& weight = linear.weights[i];
    error = map_boxes(weight.y, linear.dtype, linear.m, weight.n, weight.n, kBoxTokens, &a->y[i]);
  }
  return error;
}

template <typename Shape>
cudaError_t launch_shape(Turns a, const Device& device, void* stream) {
  constexpr int kStatic = 2 * kGroups * sizeof(Factors<kRows, Shape::kColumns>) + 1536;  // with the system's own
  constexpr int kRest = kWeights + kGroups * static_cast<int>(kOutputBytes<Shape::kColumns, kRowTiles>),
                kStage = Shape::kStage;
  a.tiles = row_tiles(a.linear, kRows);
  a.token_tiles = static_cast<int>(hopper_token_tiles(a.linear, 1, Shape::kColumns));
  const bool has_whole = a.quantized.hopper.columns == Shape::kColumns;  // else all tiles are of kLastColumns
  a.whole_row_tiles = !has_whole                 ? 0
                      : Shape::kLastColumns == 0 ? a.tiles.count
                                                 : whole_row_tiles(a.tiles.count, a.token_tiles, device);
  a.whole_tiles = a.all_tiles = a.whole_row_tiles * a.token_tiles;
  if constexpr (Shape::kLastColumns > 0) {
    a.last_token_tiles = static_cast<int>(hopper_token_tiles(a.linear, 1, Shape::kLastColumns));
    a.all_tiles += (a.tiles.count - a.whole_row_tiles) * a.last_token_tiles;
  }
  const cudaError_t error = map_all<Shape>(&a);
  if (error != cudaSuccess) return error;
  a.stages = std::min((device.shared_memory - kRest - kStatic) / kStage, kMostStages);
  const dim3 grid(static_cast<unsigned>(std::min(a.all_tiles, device.multiprocessors)));
  return visit_outputs<Shape::kInt8>(outputs_of(a.linear, 1), [&](auto outputs) {
    return launch(hopper_turns_kernel<Shape, decltype(outputs)::value>, grid, kBlock,
                  static_cast<size_t>(a.stages * kStage + kRest), stream, true, 1, a);
  });
}

template <typename Value>
cudaError_t launch_columns(const Turns& a, const Device& device, void* stream) {
  const HopperTile tile = a.quantized.hopper;
  if constexpr (std::is_same_v<Value, int8_t>) {
    if (tile.columns == 80) return launch_shape<Shape<80, 0, Value>>(a, device, stream);
    if (tile.columns == 96) return launch_shape<Shape<96, 0, Value>>(a, device, stream);
    if (tile.last_columns == 64) return launch_shape<Shape<128, 64, Value>>(a, device, stream);
    if (tile.last_columns == 96) return launch_shape<Shape<128, 96, Value>>(a, device, stream);
  }
  // Of floating-point activations 80 columns alone are 3 % faster so than as a shape of their own.
  if (tile.columns == 80 || tile.last_columns == 80) return launch_shape<Shape<128, 80, Value>>(a, device, stream);
  return launch_shape<Shape<128, 0, Value>>(a, device, stream);
}

}  // namespace

int launch_hopper_turns(const Linear& linear, const Quantized& quantized, const Device& device, void* stream) {
  Turns a = {};
  a.linear = linear;
  a.quantized = quantized;
  a.row_bytes = static_cast<int>(bytes_of_row(linear));
  a.chunks = static_cast<int>(quantized.chunks);
  if (!quantized.floating) return launch_columns<int8_t>(a, device, stream);
  return linear.dtype == Dtype::kBFloat16 ? launch_columns<__nv_bfloat16>(a, device, stream)
                                          : launch_columns<__half>(a, device, stream);
}

}  // namespace bitlab::cuda
