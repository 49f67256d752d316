// Many columns on Hopper: its asynchronous tensor-core products (wgmma) run while the weights of the next are decoded.
//
//     block   two or three warpgroups of 64 or 128 rows each, times kColumns columns; more warps bring what they need
//     left    packed weights -> shared memory (chunk_copies.cuh, weight_boxes.cuh) -> registers: a shift and a mask for
//             four codes, or with few columns one shift for sixteen and two sums (decode_paired)
//     right   int8 activations of a chunk, in a ring of shared memory filled by bulk copies: the workspace has the very
//             layout that the product reads
//     cluster where there are too few tiles for all multiprocessors, blocks share a tile: each takes part of K
//             (hopper_splits.cuh)
//
// A product of 64 rows x 128 columns x 32 keeps the tensor cores busy for 64 cycles; its left operand is 16 codes a
// lane, 4 masks and 3 shifts. Floating-point activations take the same way in values of two bytes (arrange.cu).
#pragma once

#include "hopper_helpers.cuh"
#include "hopper_outputs.cuh"
#include "hopper_products.cuh"
#include "hopper_shape.cuh"
#include "hopper_splits.cuh"

namespace bitlab::cuda {
namespace {

// A block writes kOwn times eight columns of its tile: all where it has K alone, fewer where it shares it. 0: it shares
// K, and how many is known when it runs.
template <typename Shape, Outputs kOutputs, int kOwn>
__global__ void __launch_bounds__(Shape::kMultiplying + Shape::kHelpers, Shape::kResident)
    hopper_kernel(const __grid_constant__ Hopper a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Value = typename Shape::Value;
  using Sum = typename Shape::Sum;
  constexpr Format kFormat = Shape::kFormat;
  constexpr int kColumns = Shape::kColumns, kRows = Shape::kRows, kRowTiles = Shape::kRowTiles;
  constexpr bool kInt8 = Shape::kInt8, kByBoxes = Shape::kByBoxes, kOverlaps = Shape::kOverlaps;
  constexpr bool kShares = kOwn < kColumns / 8;
  constexpr int kMultiplying = Shape::kMultiplying, kFetchers = kByBoxes ? 64 : 32;
  constexpr int kForInitialized = kMultiplying + kFetchers,
                kForFactors = kMultiplying + Shape::kHelpers - kFetchers;  // threads at these barriers
  extern __shared__ __align__(1024) int8_t shared[];  // received sums, activations, weights; in the end sums or outputs
  __shared__ __align__(8) uint64_t barriers[2 * kMostStages + 1 + WeightBoxes<kRows>::kBarriers];
  __shared__ __align__(16) Factors<kRows, kColumns> factors;

  const Linear& linear = a.linear;
  const Quantized& quantized = a.quantized;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int stages = a.stages, splits = kShares ? a.splits : 1, split = kShares ? rank_in_cluster() : 0;
  const int first_chunk = split * a.split_chunks + min(split, a.longer_splits);
  const int count = a.split_chunks + (split < a.longer_splits);
  // Tiles of tokens are computed side by side, so that memory is asked for a weight once for all of them.
  const int token_tile = static_cast<int>((kShares ? cluster_along_z() : blockIdx.z) * gridDim.x + blockIdx.x);
  if (token_tile >= a.token_tiles) return;
  const int first_token = token_tile * quantized.tile_tokens;
  int first_row;
  const int weight_index = weight_of_tile(linear, a.tiles, static_cast<int>(blockIdx.y), kRows, &first_row);
  const Weight& weight = linear.weights[weight_index];
  const uint32_t ring = in_register(shared_address(shared) + a.received_bytes),
                 full = in_register(shared_address(barriers)), empty = full + 8 * kMostStages;
  const Splits<kColumns, kRows> of_splits = {splits, split, kOwn > 0 ? kOwn : a.own, shared_address(shared),
                                             empty + 8 * kMostStages};
  const uint32_t weight_stages = ring + stages * Shape::kStage, of_boxes = empty + 8 * (kMostStages + 1);
  if (warp >= kMultiplying / 32) {
    if constexpr (Shape::kMovesRegisters) decrease_registers<kRegistersOfHelpers>();
    if (warp >= (kMultiplying + kFetchers) / 32) {
      copy_factors<kInt8, kMultiplying + kFetchers>(a, weight, first_row, first_token, factors);
      announce<kFactorsThere, kForFactors>();
      return;
    }
    const bool for_weights = kByBoxes && warp > kMultiplying / 32;
    WeightBoxes<kRows> boxes(weight_stages, of_boxes);
    if (lane == 0) {
      if (for_weights) {
        boxes.init_barriers(kMultiplying / 32);
      } else {
#pragma unroll
        for (int i = 0; i < kMostStages; ++i) {
          init_barrier(full + 8 * i, 1);
          init_barrier(empty + 8 * i, kMultiplying / 32);
        }
        if constexpr (kShares) {
          init_barrier(of_splits.barrier, 1);
          arrive_and_expect(of_splits.barrier, of_splits.bytes_to_receive());
        }
      }
      publish_barriers();
    }
    __syncwarp();
    announce<kInitialized, kForInitialized>();
    if (lane > 0) return;
    if (for_weights) {
#pragma unroll 1
      for (int i = first_chunk; i < first_chunk + count; ++i)
        boxes.fetch(&a.packed[weight_index], first_row, i * kChunkBytes);
    } else {
      wait_for_previous_kernel();
      fetch_activations<Shape::kStage>(
          quantized.q + (token_tile * quantized.chunks + first_chunk) * Shape::kBatches * Shape::kStage,
          count * Shape::kBatches, ring, stages, full, empty);
    }
    return;
  }

  if constexpr (Shape::kMovesRegisters) increase_registers<kRegistersOfProducts>();
  auto weights = [&] {
    if constexpr (kByBoxes) {
      return WeightBoxes<kRows>(weight_stages, of_boxes);
    } else {
      return typename Shape::Weights(weight, first_row, a.row_bytes, first_chunk, first_chunk + count, weight_stages);
    }
  }();
  synchronize<kInitialized, kForInitialized>();
  if constexpr (kShares) arrive_at_cluster();
  wait_for_previous_kernel();
  let_next_kernel_start();

  Sum sums[kRowTiles][kColumns / 2] = {};
  Sum by_4[Shape::kPaired ? kColumns / 2 : 1] = {};
  constexpr int kBatchWords = 4 / Shape::kBatches;
  constexpr int kSteps = weights_per_byte(kFormat) * kBatchWords / (kInt8 ? 2 : 1);
  uint32_t left[kOverlaps ? 2 : 1][kRowTiles][kSteps][4];
  int stage = 0, phase = 0, last_stage = 0;
  Words<4> words[2 * kRowTiles];
  const uint32_t columns = columns_at(ring);
  weights.read(words);
  for (int i = 0; i < count; ++i) {
#pragma unroll
    for (int batch = 0; batch < Shape::kBatches; ++batch) {
      auto& codes_of = left[kOverlaps ? batch % 2 : 0];
      decode_batch<kFormat, Value, kBatchWords, Shape::kPaired>(words, batch * kBatchWords, codes_of);
      wait(full + 8 * stage, phase);
      const uint32_t activations = columns + stage * (Shape::kStage / 16);
      begin_products();
      if constexpr (Shape::kPaired) {
        multiply_rows<kFormat, Value, kColumns>(by_4, sums[0], codes_of[0], activations);
      } else {
#pragma unroll
        for (int j = 0; j < kRowTiles; ++j)
          multiply_rows<kFormat, Value, kColumns>(sums[j], sums[j], codes_of[j], activations);
      }
      end_products();
      if (batch + 1 == Shape::kBatches) {  // all words have become codes
        weights.leave();
        if (i + 1 < count) weights.read(words);
      }
      wait_for_products<kOverlaps ? 1 : 0>();
      if (lane == 0 && (!kOverlaps || i + batch > 0)) arrive(empty + 8 * (kOverlaps ? last_stage : stage));
      last_stage = stage;
      if (++stage == stages) stage = 0, phase ^= 1;
    }
  }
  wait_for_products<0>();
  if constexpr (!kByBoxes) wait_for_copies<0>();
  if constexpr (Shape::kPaired)
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) sums[0][i] += 16 * by_4[i];

  if constexpr (kShares) {
    wait_for_cluster();  // all of its blocks have started
    of_splits.send_others(sums);
  }
  // In shared memory the sums of all digits of a token meet. A template, as there are none of floating-point
  // activations.
  const auto write_through_sums = [&](const auto& of_block) {
    of_splits.template store_own<Shape::kSumStride>(of_block, reinterpret_cast<int*>(shared + a.received_bytes));
    synchronize<kSumsThere, kMultiplying>();
    write_sums<kFormat, kRows, Shape::kSumStride>(a, weight, first_row, first_token, split * a.own, factors, ring);
  };
  if constexpr (kOwn == 0) {
    synchronize<kFactorsThere, kForFactors>();  // from here on the stages are free
    write_through_sums(sums);
  } else {
    constexpr int kWritten = 8 * kOwn;
    const int group = warp / 4, first_own = kShares ? split * kWritten : 0;
    if constexpr (kShares) {
      if (first_own >= kColumns) {
        announce<kFactorsThere, kForFactors>();
        return;
      }
      of_splits.bring_own_to_front(sums);
    }
    const uint32_t outputs = ring + group * kOutputBytes<kWritten, kRowTiles>;
    OutputWriter<kOutputs, kWritten, kRowTiles> writer(weight, first_row + group * 64 * kRowTiles,
                                                       first_token + first_own, static_cast<int>(linear.m), outputs);
    const FactorsOfColumns of_own = {factors.row_scale, factors.token_scale + first_own,
                                     factors.column_sum + first_own};
    synchronize<kFactorsThere, kForFactors>();  // from here on the stages are free
    const auto write = [&](auto value) {
      const auto complete_sums = [&] {
        if constexpr (kShares) {
          of_splits.wait_for_others();
          of_splits.template add_others<kOwn>(sums[0], 0);
        }
      };
      const auto write_slice = [&] {
        synchronize_group(group);
        writer.write();
      };
      visit_plain<kOutputs>(weight, [&](auto is_plain) {
        stage_outputs<kFormat, kWritten, kRowTiles, decltype(is_plain)::value, decltype(value)>(
            weight, first_row, sums, of_own, outputs, complete_sums, write_slice);
      });
    };
    if constexpr (!kInt8) {
      write(Value());
    } else if constexpr (kOutputs == Outputs::kBFloat16) {
      write(__nv_bfloat16());
    } else if constexpr (kOutputs == Outputs::kFloat16) {
      write(__half());
    } else if (quantized.digits == 1 && linear.dtype == Dtype::kBFloat16) {
      write(__nv_bfloat16());
    } else if (quantized.digits == 1 && linear.dtype == Dtype::kFloat16) {
      write(__half());
    } else {
      write_through_sums(sums);
    }
  }
#endif
}

}  // namespace
}  // namespace bitlab::cuda
