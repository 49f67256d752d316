// Copies x, two bytes a value, to the order in which products of floating-point activations read it (fragments.cuh): a
// register of codes is two pairs of weights, so a lane's share of a word is P pairs for each of two halves.
#include "activations.cuh"
#include "launch.cuh"
#include "quantized.h"

namespace bitlab::cuda {
namespace {

constexpr int kThreads = 256;

// A block arranges one token; a lane takes one word's share of K at a time.
template <Format kFormat>
__global__ void __launch_bounds__(kThreads)
    arrange_kernel(const uint16_t* x, int64_t m, int64_t k, int64_t x_stride, bool aligned, Quantized out) {
  using Layout = Chunk<kFormat>;
  constexpr int kPerByte = Layout::kPerByte, kCount = 4 * kPerByte;
  const int t = threadIdx.x % 4, column = static_cast<int>(blockIdx.x), words = static_cast<int>(out.chunks) * 4;
  const int64_t tile = tile_of_block(), token = tile * out.tile_tokens + column;
  if (token >= m) return;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const uint16_t* row = x + token * x_stride;
  char* tile_q = reinterpret_cast<char*>(out.q) + tile * out.chunks * Layout::kHalfSteps * 2 * out.tile_columns * 16;
#pragma unroll 2
  for (int first_word = 0; first_word < words; first_word += kThreads / 4) {
    const int word = first_word + static_cast<int>(threadIdx.x) / 4;
    const int64_t k0 = static_cast<int64_t>(word / 4) * Layout::kWeights + (t * 4 + word % 4) * kCount;
    uint32_t pairs[kCount / 2] = {};
    if (aligned && k0 + kCount <= k) {
      load_pairs<kCount>(row, k0, true, pairs);
    } else {
      for (int i = 0; i < kCount; ++i)
        if (k0 + i < k) pairs[i / 2] |= static_cast<uint32_t>(row[k0 + i]) << i % 2 * 16;
    }
    const auto value = [&](int i) { return pairs[i / 2] >> i % 2 * 16 & 0xffffu; };
    uint32_t of_halves[2 * kPerByte];
#pragma unroll
    for (int c = 0; c < kPerByte; ++c)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        of_halves[2 * c + half] =
            value(weight_of_pair<kFormat>(c, half, 0)) | value(weight_of_pair<kFormat>(c, half, 1)) << 16;
    const int r = word * kPerByte * 2;
    if constexpr (kPerByte == 4) {
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        const uint4 piece = exchange_words({of_halves[i], of_halves[i + 1], of_halves[i + 2], of_halves[i + 3]});
        if (word < words) *reinterpret_cast<uint4*>(tile_q + place_of(out, r + i + t, column)) = piece;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 2 * kPerByte; ++i)
        if (word < words) *reinterpret_cast<uint32_t*>(tile_q + place_of(out, r + i, column) + t * 4) = of_halves[i];
    }
  }
}

}  // namespace

int launch_arrange(const Linear& linear, const Quantized& out, void* stream) {
  const bool aligned = is_aligned_for_rows(linear.x, linear.dtype, linear.x_stride);
  const auto kernel = linear.format == Format::k2Bit ? arrange_kernel<Format::k2Bit> : arrange_kernel<Format::kBase3>;
  return launch(kernel, blocks_of_tokens(linear, out), kThreads, 0, stream, true, 1,
                static_cast<const uint16_t*>(linear.x), linear.m, linear.k, linear.x_stride, aligned, out);
}

}  // namespace bitlab::cuda
