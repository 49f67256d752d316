// What the warps beside those of the products do in hopper.cu:
//
//     the first     activations, into a ring as far ahead as there is room
//     the second    weights, where they come by boxes
//     one or more   factors of the outputs
#pragma once

#include "async_copy.cuh"
#include "fragments.cuh"
#include "hopper_block.cuh"
#include "wgmma.cuh"

namespace bitlab::cuda {
namespace {

// `count` stages of `kBytes` from `from` on, into a ring of so many stages. One thread.
template <uint32_t kBytes>
__device__ __forceinline__ void fetch_activations(const int8_t* from, int count, uint32_t ring, int stages,
                                                  uint32_t full, uint32_t empty) {
  int stage = 0, phase = 1;
#pragma unroll 1
  for (; count > 0; --count, from += kBytes) {
    wait(empty + 8 * stage, phase);
    arrive_and_expect(full + 8 * stage, kBytes);
    copy_bulk(ring + stage * kBytes, from, kBytes, full + 8 * stage);
    if (++stage == stages) stage = 0, phase ^= 1;
  }
}

// The factors of the rows from `first_row` on, and of the tokens from `first_token` on. The block's threads from
// kFirst on.
template <bool kInt8, int kFirst, int kRows, int kColumns>
__device__ __forceinline__ void copy_factors(const Hopper& a, const Weight& weight, int64_t first_row,
                                             int64_t first_token, Factors<kRows, kColumns>& factors) {
  const Quantized& quantized = a.quantized;
  const auto copy_all = [](auto* to, const auto* from, int64_t stride, int64_t count, int most) {
    const int here = static_cast<int>(min(count, static_cast<int64_t>(most)));
#pragma unroll 1
    for (int i = threadIdx.x - kFirst; i < here; i += blockDim.x - kFirst)
      copy_4_bytes(shared_address(to + i), from + i * stride);
  };
  copy_all(factors.row_scale, weight.scale + first_row * weight.scale_stride, weight.scale_stride, weight.n - first_row,
           kRows);
  wait_for_previous_kernel();
  if constexpr (kInt8) {
    const int64_t tokens = a.linear.m - first_token;
    copy_all(factors.token_scale, quantized.scale + first_token, 1, tokens, quantized.tile_tokens);
    copy_all(factors.column_sum, quantized.sum + first_token * quantized.digits, 1, tokens * quantized.digits,
             quantized.tile_columns);
  }
  end_copies();
  wait_for_copies<0>();
}

}  // namespace
}  // namespace bitlab::cuda
