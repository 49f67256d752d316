// Any number of columns, any GPU since sm_75, one scale a row or one a group.
//
//     block   8 warps, tile of 128 rows x kColumns columns; activations pass through shared memory chunk by chunk,
//             three of them under way
//     warp    16 rows: their weights go from memory to registers, one chunk ahead, and never through shared memory
//
// Columns come in blocks of 8 tokens, one block for each digit, so that a lane holds all digits of its tokens.
#include "activations.cuh"
#include "async_copy.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "rows.cuh"
#include "tensor_core.cuh"

namespace bitlab::cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps, kRows = 16 * kWarps;
constexpr int kStages = 3;

struct Batch {
  Linear linear;
  Quantized quantized;
  RowTiles tiles;
  int64_t row_bytes;
  int64_t group_chunks;
};

template <Format kFormat, int kWords, int kDigits, bool kGrouped, bool kAligned>
__global__ void __launch_bounds__(kThreads) batch_kernel(const __grid_constant__ Batch a) {
  using Layout = Chunk<kFormat, kWords>;
  constexpr int kTokenBlocks = kDigits == 1 ? 8 : 2, kColumnTiles = kTokenBlocks * kDigits, kColumns = 8 * kColumnTiles;
  constexpr int kStageBytes = Layout::kHalfSteps * kColumns * 16;
  extern __shared__ __align__(128) int8_t stages[];  // [kStages][half steps][columns][16]

  const Linear& linear = a.linear;
  const int64_t chunks = a.quantized.chunks;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  int64_t first;
  const Weight& weight =
      linear.weights[weight_of_tile(linear, a.tiles, static_cast<int>(blockIdx.x % a.tiles.count), kRows, &first)];
  const int64_t token_tile = blockIdx.x / a.tiles.count;
  first += 16 * warp;
  const uint8_t* row = weight.packed + min(first + g, weight.n - 1) * a.row_bytes;
  const uint8_t* row8 = weight.packed + min(first + g + 8, weight.n - 1) * a.row_bytes;
  const uint8_t* end = weight.packed + weight.n * a.row_bytes;
  const auto read = [&](int64_t chunk, Words<kWords>(&words)[2]) {
    const int64_t offset = chunk * Layout::kBytes + t * 4 * kWords;
    words[0] = load_words<kWords, kAligned>(row, a.row_bytes, offset, end);
    words[1] = load_words<kWords, kAligned>(row8, a.row_bytes, offset, end);
  };
  const uint32_t stages_address = shared_address(stages);
  const int8_t* from = a.quantized.q + token_tile * chunks * kStageBytes;
  const auto copy = [&](int64_t chunk) {
    if (chunk < chunks)
      for (int i = threadIdx.x * 16; i < kStageBytes; i += kThreads * 16)
        copy_16_bytes(stages_address + static_cast<uint32_t>(chunk % kStages) * kStageBytes + i,
                      from + chunk * kStageBytes + i);
    end_copies();
  };

  Words<kWords> words[2];
  read(0, words);
  wait_for_previous_kernel();
  let_next_kernel_start();
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) copy(i);

  int sums[kColumnTiles][4] = {};
  float totals[kTokenBlocks][4] = {};
  const int64_t first_token = token_tile * a.quantized.tile_tokens;
  // Of token block j, element i: row and token.
  const auto row_of = [&](int i) { return first + g + i / 2 * 8; };
  const auto token_of = [&](int j, int i) { return first_token + 8 * j + 2 * t + i % 2; };

  // float32 of the exact products of the columns' sums in `sums`, which start anew.
  const auto take_product = [&](int j, int i, int64_t group) {
    const int64_t n = row_of(i), token = token_of(j, i);
    const bool live = n < weight.n && token < linear.m;
    const int zero = live ? zero_of(weight, linear.format, n, group) : 0;
    int total[kDigits];
#pragma unroll
    for (int d = 0; d < kDigits; ++d) {
      const int column_sum = live ? a.quantized.sum[(token * kDigits + d) * a.quantized.groups + group] : 0;
      total[d] = sums[j * kDigits + d][i] - zero * column_sum;
      sums[j * kDigits + d][i] = 0;
    }
    return product_of(total, kDigits);
  };

  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    copy(chunk + kStages - 1);
    Words<kWords> next[2];
    if (chunk + 1 < chunks) read(chunk + 1, next);
    uint32_t codes[2][Layout::kHalfSteps];
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        uint32_t of_word[Layout::kPerByte];
        decode<kFormat>(words[half].word[w], of_word);
#pragma unroll
        for (int i = 0; i < Layout::kPerByte; ++i) codes[half][w * Layout::kPerByte + i] = of_word[i];
      }
    const uint32_t stage = stages_address + static_cast<uint32_t>(chunk % kStages) * kStageBytes;
#pragma unroll
    for (int r = 0; r < Layout::kHalfSteps; r += 2)
#pragma unroll
      for (int j = 0; j < kColumnTiles; j += 2) {
        // Half steps r and r + 1 of column tiles j and j + 1.
        uint32_t b[4];
        load_matrices(b, stage + ((r + lane / 8 % 2) * kColumns + 8 * (j + lane / 16) + lane % 8) * 16);
        multiply_add(sums[j], codes[0][r], codes[1][r], codes[0][r + 1], codes[1][r + 1], b[0], b[1]);
        multiply_add(sums[j + 1], codes[0][r], codes[1][r], codes[0][r + 1], codes[1][r + 1], b[2], b[3]);
      }
    if constexpr (kGrouped) {
      if ((chunk + 1) % a.group_chunks == 0 || chunk + 1 == chunks) {
        const int64_t group = chunk / a.group_chunks;
#pragma unroll
        for (int j = 0; j < kTokenBlocks; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float scale = row_of(i) < weight.n ? weight.scale[row_of(i) * weight.scale_stride + group] : 0.0f;
            totals[j][i] = __fadd_rn(totals[j][i], __fmul_rn(take_product(j, i, group), scale));
          }
      }
    }
    words[0] = next[0];
    words[1] = next[1];
  }

#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t n = row_of(i), token = token_of(j, i);
      if (n >= weight.n || token >= linear.m) continue;
      float value;
      if constexpr (kGrouped) {
        value = __fmul_rn(totals[j][i], a.quantized.scale[token]);
      } else {
        const float factor = __fmul_rn(a.quantized.scale[token], weight.scale[n * weight.scale_stride]);
        value = __fmul_rn(take_product(j, i, 0), factor);
      }
      store_float(weight.y, linear.dtype, token * weight.n + n, with_bias(value, weight, n));
    }
}

template <Format kFormat, int kWords, int kDigits, bool kGrouped, bool kAligned>
cudaError_t launch_kernel(const Batch& a, void* stream) {
  const size_t shared =
      kStages * Chunk<kFormat, kWords>::kHalfSteps * static_cast<size_t>(a.quantized.tile_columns) * 16;
  const int64_t token_tiles = (a.linear.m + a.quantized.tile_tokens - 1) / a.quantized.tile_tokens;
  return launch(batch_kernel<kFormat, kWords, kDigits, kGrouped, kAligned>,
                dim3(static_cast<unsigned>(a.tiles.count * token_tiles)), kThreads, shared, stream, true, 1, a);
}

template <Format kFormat, int kWords, bool kGrouped, bool kAligned>
cudaError_t launch_digits(const Batch& a, void* stream) {
  return a.quantized.digits == 1 ? launch_kernel<kFormat, kWords, 1, kGrouped, kAligned>(a, stream)
                                 : launch_kernel<kFormat, kWords, kFloatDigits, kGrouped, kAligned>(a, stream);
}

template <Format kFormat>
cudaError_t launch_format(const Batch& a, bool aligned, void* stream) {
  if (a.linear.group_size == 0)
    return aligned ? launch_digits<kFormat, 4, false, true>(a, stream)
                   : launch_digits<kFormat, 4, false, false>(a, stream);
  if (a.quantized.words == 4) return launch_digits<kFormat, 4, true, false>(a, stream);
  if (a.quantized.words == 2) return launch_digits<kFormat, 2, true, false>(a, stream);
  if constexpr (Chunk<kFormat, 1>::kHalfSteps % 2 == 0) return launch_digits<kFormat, 1, true, false>(a, stream);
  return cudaErrorInvalidValue;
}

}  // namespace

int launch_batch(const Linear& linear, const Quantized& quantized, void* stream) {
  const int64_t row_bytes = bytes_of_row(linear);
  const int64_t chunk_weights = int64_t{16} * quantized.words * weights_per_byte(linear.format);
  const Batch a = {linear, quantized, row_tiles(linear, kRows), row_bytes, linear.group_size / chunk_weights};
  const bool aligned = rows_are_aligned(linear, row_bytes);
  switch (linear.format) {
    case Format::k2Bit: return launch_format<Format::k2Bit>(a, aligned, stream);
    case Format::kBase3: return launch_format<Format::kBase3>(a, aligned, stream);
    case Format::kInt4: return launch_format<Format::kInt4>(a, aligned, stream);
    default: return launch_format<Format::kInt8>(a, aligned, stream);
  }
}

}  // namespace bitlab::cuda
