// 9 to 16 columns: still bound by reading the weights, but no longer with all activations of K in shared memory.
//
//     block   8 warps share a tile of 16 * kRowTiles rows, warp w takes chunks w, w + 8, ... of them
//     warp    a chunk of its activations at a time, in registers, multiplied with that chunk of one row tile after the
//             other, whose codes are decoded before; the next chunk of both is under way
//     shared  that next chunk: a lane reads back what it copied itself; in the end the sums of the warps
//
// Activations cross L2 once for each tile of rows, so tiles are as high as the multiprocessors still all get some.
// wgmma is no faster for so few columns: its left operand takes as long to read as a product with 32 columns or more.
// Two bits a weight: 32 bytes a lane are 128 weights, 40 shifts and masks, and 16 products m16n8k32 of the warp.
#include <stdint.h>

#include <algorithm>

#include "activations.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "outputs.h"
#include "rows.cuh"
#include "tensor_core.cuh"
#include "weight_stages.cuh"

namespace bitlab::cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kColumns = kNarrowColumns, kColumnTiles = kColumns / 8;

// Sums of scaled codes (decode_words) of a warp stay in 32 bits.
constexpr int64_t kMostK = 1 << 20;

struct Narrow {
  Linear linear;
  Quantized quantized;
  RowTiles tiles;
  int64_t row_bytes;
};

template <bool kAligned>
constexpr int kWeightStage = 16 * kRowStage<kAligned>;  // of a warp: a chunk of a row tile

template <Format kFormat>
constexpr int kActivationStage = Chunk<kFormat>::kHalfSteps * kColumns * 16;  // of a warp: a chunk of all columns

template <Format kFormat, int kRowTiles, bool kAligned>
constexpr int shared_bytes() {
  const int rings = kWarps * (kRowTiles * kWeightStage<kAligned> + kActivationStage<kFormat>);
  const int sums = kWarps * kColumns * (16 * kRowTiles + 4) * static_cast<int>(sizeof(int));
  return rings > sums ? rings : sums;
}

template <Format kFormat, int kRowTiles, bool kAligned, Outputs kOutputs>
__global__ void __launch_bounds__(kThreads, 2) narrow_kernel(const __grid_constant__ Narrow a) {
  using Layout = Chunk<kFormat>;
  constexpr int kRows = 16 * kRowTiles, kQuads = Layout::kHalfSteps / 4;
  constexpr int kSumStride = kRows + 4;  // without bank conflicts
  extern __shared__ __align__(128) int8_t shared[];
  __shared__ float token_scale[kColumns];
  __shared__ int column_sum[kColumns];

  const Linear& linear = a.linear;
  const int m = static_cast<int>(linear.m), digits = a.quantized.digits;
  const int chunks = static_cast<int>(a.quantized.chunks);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  int64_t first;
  const Weight& weight = linear.weights[weight_of_tile(linear, a.tiles, static_cast<int>(blockIdx.x), kRows, &first)];
  // Of more than one row tile there are as many rows in every weight: the last tile may repeat some of the one before.
  if (kRowTiles > 1) first = min(first, weight.n - kRows);

  // Bytes of a row: this lane's of the next chunk to multiply, and the end of this warp's chunks.
  constexpr int kStep = kWarps * kChunkBytes;
  int offset = warp * kChunkBytes + t * 16;
  const int end = chunks * kChunkBytes, copies_end = kAligned ? static_cast<int>(a.row_bytes) : end;
  const uint8_t* row = weight.packed + min(first + g, weight.n - 1) * a.row_bytes;
  const uint8_t* row8 = weight.packed + min(first + g + 8, weight.n - 1) * a.row_bytes;
  const int64_t row_tile_bytes = 16 * a.row_bytes;
  const uint32_t own_weights =
      shared_address(shared) + warp * kRowTiles * kWeightStage<kAligned> + place_in_stage<kAligned>();
  const auto copy_weights = [&](int r, int from) {
    if (from < copies_end) {
      const uint32_t to = own_weights + r * kWeightStage<kAligned>;
      copy_share<kAligned>(weight, a.row_bytes, row + r * row_tile_bytes, from, to);
      copy_share<kAligned>(weight, a.row_bytes, row8 + r * row_tile_bytes, from, to + 8 * kRowStage<kAligned>);
    }
    end_copies();
  };
  // Columns that do not exist hold anything, and their outputs are not written.
  const uint32_t activations = shared_address(shared) + kWarps * kRowTiles * kWeightStage<kAligned> +
                               warp * kActivationStage<kFormat> + lane * 16;
  const int8_t* from = a.quantized.q + static_cast<int64_t>(warp) * kActivationStage<kFormat> + g * 64 + t * 16;
  const auto copy_activations = [&] {  // of the chunk at `offset`
    if (offset >= end) return;
#pragma unroll
    for (int i = 0; i < kQuads * kColumnTiles; ++i) copy_16_bytes(activations + i * 512, from + i * 512);
    from += kWarps * kActivationStage<kFormat>;
  };

#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) copy_weights(r, offset);
  wait_for_previous_kernel();  // the quantization; weights are there before, see launch.cuh
  let_next_kernel_start();
  copy_activations();
  if (threadIdx.x < m) copy_4_bytes(shared_address(&token_scale[threadIdx.x]), a.quantized.scale + threadIdx.x);
  if (threadIdx.x < m * digits) copy_4_bytes(shared_address(&column_sum[threadIdx.x]), a.quantized.sum + threadIdx.x);
  end_copies();
  const int out_row = static_cast<int>(threadIdx.x) % kRows;
  const int64_t n = first + out_row;
  const bool live = n < weight.n;
  const OutputRow of_row(weight, kFormat, n, live);

  // Copies end in groups, one for the activations of a chunk and one for each of its row tiles, and are asked for again
  // when what they brought is in registers: so kRowTiles younger groups are under way when one is needed.
  uint32_t codes[Layout::kHalfSteps], codes8[Layout::kHalfSteps];
  const auto decode_tile = [&](int r, int next) {  // and asks for it `next` bytes behind the row's start
    wait_for_copies<kRowTiles>();
    if constexpr (!kAligned) __syncwarp();  // lanes read their neighbours' bytes
    const uint32_t place = own_weights + r * kWeightStage<kAligned>;
    decode_words<kFormat>(staged_words<kAligned>(place, shift_of_row<kAligned>(row + r * row_tile_bytes)), codes);
    decode_words<kFormat>(
        staged_words<kAligned>(place + 8 * kRowStage<kAligned>, shift_of_row<kAligned>(row8 + r * row_tile_bytes)),
        codes8);
    if constexpr (!kAligned) __syncwarp();
    copy_weights(r, next);
  };

  // The codes of a row tile are decoded before the products of the one in front, where there are registers for both.
  constexpr bool kDecodesAhead = kRowTiles < 4;
  int sums[kRowTiles][kColumnTiles][2][4] = {};  // by scale of decode_words
  bool more = offset < end;
  if (kDecodesAhead) decode_tile(0, offset + kStep);
  wait_for_copies<kDecodesAhead ? 1 : 0>();  // the first activations
  while (more) {
    wait_for_copies<kRowTiles>();
    Words<4> b[kQuads][kColumnTiles];
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad)
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j)
        b[quad][j] = load_shared_words(activations + (quad * kColumnTiles + j) * 512);
    offset += kStep;
    more = offset < end;
    copy_activations();
    end_copies();
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      if (!kDecodesAhead) decode_tile(r, offset);
#pragma unroll
      for (int quad = 0; quad < kQuads; ++quad)
#pragma unroll
        for (int j = 0; j < kColumnTiles; ++j) {
          const int k = 4 * quad;
          const uint32_t (&of)[4] = b[quad][j].word;
          multiply_add(sums[r][j][0], codes[k], codes8[k], codes[k + 1], codes8[k + 1], of[0], of[1]);
          multiply_add(sums[r][j][1], codes[k + 2], codes8[k + 2], codes[k + 3], codes8[k + 3], of[2], of[3]);
        }
      if (kDecodesAhead && r + 1 < kRowTiles) decode_tile(r + 1, offset);
    }
    if (kDecodesAhead && more) decode_tile(0, offset + kStep);
  }
  wait_for_copies<0>();
  __syncthreads();

  // The warps' sums, [warp][column][row].
  int* partial = reinterpret_cast<int*>(shared);
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        partial[(warp * kColumns + 8 * j + 2 * t + i % 2) * kSumStride + 16 * r + g + i / 2 * 8] =
            sum_of_pairs<kFormat>(sums[r][j][0][i], sums[r][j][1][i]);
  __syncthreads();
  if (!live) return;
  const auto sum_of = [&](int column) {
    int total = -of_row.zero * column_sum[column];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += partial[(w * kColumns + column) * kSumStride + out_row];
    return total;
  };
  constexpr int kAtOnce = kThreads / kRows, kEach = kColumns / kAtOnce;  // tokens
  const int first_token = static_cast<int>(threadIdx.x) / kRows;
  if (kOutputs != Outputs::kAny || digits == 1) {
    int totals[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) totals[i] = sum_of(first_token + i * kAtOnce);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int token = first_token + i * kAtOnce;
      if (token < m) of_row.write<kOutputs>(linear.dtype, token, &totals[i], 1, token_scale[token]);
    }
  } else {
    for (int token = first_token; token < m; token += kAtOnce) {
      int totals[kFloatDigits];
#pragma unroll
      for (int d = 0; d < kFloatDigits; ++d) totals[d] = sum_of(token * kFloatDigits + d);
      of_row.write(linear.dtype, token, totals, kFloatDigits, token_scale[token]);
    }
  }
}

template <Format kFormat, int kRowTiles>
cudaError_t launch_rows(Narrow a, const Device& device, bool aligned, void* stream) {
  a.tiles = row_tiles(a.linear, 16 * kRowTiles);
  const int rings = aligned ? shared_bytes<kFormat, kRowTiles, true>() : shared_bytes<kFormat, kRowTiles, false>();
  // Blocks that find a multiprocessor each shall not share one.
  const int alone = a.tiles.count <= device.multiprocessors ? share_of(device, 1) : 0;
  return visit_outputs<kFormat == Format::k2Bit>(outputs_of(a.linear, a.quantized.digits), [&](auto outputs) {
    constexpr Outputs kOutputs = decltype(outputs)::value;
    const auto kernel = aligned ? narrow_kernel<kFormat, kRowTiles, true, kOutputs>
                                : narrow_kernel<kFormat, kRowTiles, false, kOutputs>;
    return launch(kernel, dim3(static_cast<unsigned>(a.tiles.count)), kThreads,
                  static_cast<size_t>(std::max(rings, alone)), stream, true, 1, a);
  });
}

// About the time that tiles of so many row tiles take: activations count as two and a half of them, and a block alone
// on its multiprocessor works faster than one of two, but not twice as fast.
template <Format kFormat, int kRowTiles>
int64_t cost_of(const Linear& linear, const Device& device) {
  constexpr int kShared = shared_bytes<kFormat, kRowTiles, false>();
  for (int i = 0; i < linear.weight_count; ++i)
    if (linear.weights[i].n < 16 * kRowTiles) return INT64_MAX;
  if (kShared > device.shared_memory) return INT64_MAX;
  const int resident = 2 * (kShared + 1024) <= device.shared_memory ? 2 : 1;
  const int64_t blocks = row_tiles(linear, 16 * kRowTiles).count, at_once = resident * device.multiprocessors;
  const bool alone = resident == 1 || blocks <= device.multiprocessors;
  return (blocks + at_once - 1) / at_once * (alone ? 3 : 4) * (2 * kRowTiles + 5);
}

template <Format kFormat>
cudaError_t launch_format(const Narrow& a, const Device& device, bool aligned, void* stream) {
  const int64_t cost1 = cost_of<kFormat, 1>(a.linear, device), cost2 = cost_of<kFormat, 2>(a.linear, device),
                cost4 = cost_of<kFormat, 4>(a.linear, device);
  if (cost4 < cost2 && cost4 < cost1) return launch_rows<kFormat, 4>(a, device, aligned, stream);
  return cost2 < cost1 ? launch_rows<kFormat, 2>(a, device, aligned, stream)
                       : launch_rows<kFormat, 1>(a, device, aligned, stream);
}

}  // namespace

bool narrow_can_serve(const Linear& linear, int digits, const Device& device) {
  return linear.group_size == 0 && linear.m * digits <= kColumns && linear.k <= kMostK &&
         shared_bytes<Format::kBase3, 1, false>() <= device.shared_memory;
}

int launch_narrow(const Linear& linear, const Quantized& quantized, const Device& device, void* stream) {
  const int64_t row_bytes = bytes_of_row(linear);
  const Narrow a = {linear, quantized, {}, row_bytes};
  const bool aligned = rows_are_aligned(linear, row_bytes);
  switch (linear.format) {
    case Format::k2Bit: return launch_format<Format::k2Bit>(a, device, aligned, stream);
    case Format::kBase3: return launch_format<Format::kBase3>(a, device, aligned, stream);
    default: return launch_format<Format::kInt4>(a, device, aligned, stream);
  }
}

}  // namespace bitlab::cuda
