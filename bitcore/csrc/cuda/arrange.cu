// Copies x, two bytes a value, to the order in which products of floating-point activations read it (fragments.cuh): a
// register of codes is two pairs of weights, so a lane's share of a word is P pairs for each of two halves.
#include "activations.cuh"
#include "launch.cuh"
#include "quantized.h"

namespace bitlab::cuda {
namespace {

constexpr int kThreads = 256;

template <Format kFormat>
__global__ void __launch_bounds__(kThreads)
    arrange_kernel(const uint16_t* x, int64_t m, int64_t k, int64_t x_stride, bool aligned, Quantized out) {
  using Layout = Chunk<kFormat>;
  constexpr int kPerByte = Layout::kPerByte, kCount = 4 * kPerByte, kTokens = 2;
  const int lane = threadIdx.x % 32, t = lane % 4;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kTokens + lane / 4 % kTokens;
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (token >= m) return;
  const uint16_t* row = x + token * x_stride;
  const int64_t tile = token / out.tile_tokens, column = token - tile * out.tile_tokens;
  char* tile_q = reinterpret_cast<char*>(out.q) + tile * out.chunks * Layout::kHalfSteps * 2 * out.tile_columns * 16;
  const int64_t word = static_cast<int64_t>(blockIdx.y) * (kThreads / 8) + threadIdx.x / 8;
  if (word >= out.chunks * 4) return;
  const int64_t k0 = word / 4 * Layout::kWeights + (t * 4 + word % 4) * kCount;
  uint32_t pairs[kCount / 2] = {};
  if (aligned && k0 + kCount <= k) {
    load_pairs<kCount>(row, k0, true, pairs);
  } else {
    for (int i = 0; i < kCount; ++i)
      if (k0 + i < k) pairs[i / 2] |= static_cast<uint32_t>(row[k0 + i]) << i % 2 * 16;
  }
  const auto value = [&](int i) { return pairs[i / 2] >> i % 2 * 16 & 0xffffu; };
#pragma unroll
  for (int c = 0; c < kPerByte; ++c)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t r = (word * kPerByte + c) * 2 + half;
      const uint32_t pair = value(kPerByte * 2 * half + c) | value(kPerByte * (2 * half + 1) + c) << 16;
      *reinterpret_cast<uint32_t*>(tile_q + place_of(out, r, static_cast<int>(column)) + t * 4) = pair;
    }
}

}  // namespace

int launch_arrange(const Linear& linear, const Quantized& out, void* stream) {
  const bool aligned = is_aligned_for_rows(linear.x, linear.dtype, linear.x_stride);
  const auto kernel = linear.format == Format::k2Bit ? arrange_kernel<Format::k2Bit> : arrange_kernel<Format::kBase3>;
  const dim3 blocks(static_cast<unsigned>((linear.m + 1) / 2),
                    static_cast<unsigned>((out.chunks * 4 + kThreads / 8 - 1) / (kThreads / 8)));
  return launch(kernel, blocks, kThreads, 0, stream, true, 1, static_cast<const uint16_t*>(linear.x), linear.m,
                linear.k, linear.x_stride, aligned, out);
}

}  // namespace bitlab::cuda
