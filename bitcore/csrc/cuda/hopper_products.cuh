// A batch of products on Hopper: packed words of a lane -> codes in registers -> wgmma with activations in shared
// memory.
#pragma once

#include "fragments.cuh"
#include "kernels.h"
#include "wgmma.cuh"

namespace bitlab::cuda {

// The left operand of a batch of one row tile: registers [step], of words [first_word, first_word + kWords) of the
// lane's two rows. kPaired: by decode_paired(). The caller settles them.
template <Format kFormat, typename Value, int kWords, bool kPaired = false, int kSteps>
__device__ __forceinline__ void decode_rows(const Words<4>& row, const Words<4>& row8, int first_word,
                                            uint32_t (&left)[kSteps][4]) {
  constexpr int kPerByte = weights_per_byte(kFormat);
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const uint32_t word = (half == 0 ? row : row8).word[first_word + w];
      if constexpr (std::is_same_v<Value, int8_t>) {
        uint32_t codes[kPerByte];
        if constexpr (kPaired) {
          decode_paired<kFormat>(word, codes);
        } else {
          decode_high<kFormat>(word, codes);
        }
#pragma unroll
        for (int c = 0; c < kPerByte; ++c) {
          const int r = w * kPerByte + c;
          left[r / 2][r % 2 * 2 + half] = codes[c];
        }
      } else {
        uint32_t pairs[2 * kPerByte];
        decode_pairs<kFormat, Value>(word, pairs);
#pragma unroll
        for (int c = 0; c < kPerByte; ++c)
#pragma unroll
          for (int i = 0; i < 2; ++i) left[w * kPerByte + c][i * 2 + half] = pairs[2 * c + i];
      }
    }
}

// The same of all row tiles, settled.
template <Format kFormat, typename Value, int kWords, bool kPaired = false, int kSteps, int kRowTiles>
__device__ __forceinline__ void decode_batch(const Words<4> (&words)[2 * kRowTiles], int first_word,
                                             uint32_t (&left)[kRowTiles][kSteps][4]) {
#pragma unroll
  for (int j = 0; j < kRowTiles; ++j)
    decode_rows<kFormat, Value, kWords, kPaired>(words[2 * j], words[2 * j + 1], first_word, left[j]);
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
#pragma unroll
    for (int j = 0; j < kRowTiles; ++j) settle(left[j][step]);
}

// The left operand of a step of a row tile with floating-point activations in the order of K, of a word of each row
// that all four lanes of the row have. Lane t needs codes 2t, 2t + 1 and 8 + 2t, 9 + 2t of a word, a nibble each of
// bytes t / 2 and t / 2 + 2. Times 2**14 and 2**28, or 2**10 and 2**24, the codes of the low or high nibble come to the
// top of both halves of a register, where 3 more, modulo 4, make them -2, 0 and 2 (decode_pairs); nothing else of the
// byte comes there.
__device__ __forceinline__ void decode_in_order(uint32_t row, uint32_t row8, uint32_t (&left)[4]) {
  const uint32_t t = threadIdx.x % 4, byte = 0x4440 + t / 2, to_top = 0x10004000u >> t % 2 * 4;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    left[i] = (__byte_perm(i % 2 == 0 ? row : row8, 0, byte + i / 2 * 2) * to_top + 0xc000c000u) & 0xc000c000u;
  settle(left);
}

// The activations of a step, of a stage of them at `columns` (columns_at).
template <Format kFormat, int kColumns>
__device__ __forceinline__ uint64_t columns_of_step(uint32_t columns, int step) {
  constexpr int kSwizzle = hopper_swizzle(kFormat), kRowSteps = (1 << kSwizzle) / 2;
  // 32 bytes further on, or eight times kColumns rows.
  return columns_descriptor<kSwizzle>(columns) + step / kRowSteps * (kColumns << kSwizzle) + step % kRowSteps * 2;
}

// Starts the products of a batch of one row tile with a stage of activations at `columns` (columns_at). Of every other
// step sums go elsewhere: those of codes that decode_paired() made are 4 and 64 times as large.
template <Format kFormat, typename Value, int kColumns, int kSteps, typename Sum>
__device__ __forceinline__ void multiply_rows(Sum (&even)[kColumns / 2], Sum (&odd)[kColumns / 2],
                                              const uint32_t (&left)[kSteps][4], uint32_t columns) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
    multiply_async<Value, kColumns>(step % 2 == 0 ? even : odd, left[step],
                                    columns_of_step<kFormat, kColumns>(columns, step));
}

}  // namespace bitlab::cuda
