// How packed weights become the left operand of a tensor-core product, and the order of K that follows from it.
//
// m16n8k32 and wgmma's m64nNk32 deal their left operand alike: lane = 4 * row + t holds, for rows `row` and `row + 8`,
// bytes 4t..4t+3 and 16+4t..16+4t+3 of the 32. A register is therefore four bytes of one of two halves r of a step.
//
//     a chunk of one row: 16 * W packed bytes, 4 * W for each lane t            P weights a byte
//     lane t      word 0 .. W-1, each word: byte 0..3, each byte: code 0..P-1
//     register r = P * w + i  holds code i of the four bytes of word w          one shift and one mask
//     step s      registers r = 2s and 2s + 1                                   32 weights of the row
//
// So byte b of register r in lane t is weight  k = 4PW * t + 4P * w + P * b + i  of the chunk, and the activations of a
// chunk lie as [r][column][t][b]: 16 bytes for each r of each column. Eight columns of one r are a core matrix, what
// ldmatrix and wgmma read at once, without a bank conflict.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include <type_traits>

#include "linear.h"

namespace bitlab::cuda {

template <Format kFormat, int kWords = 4>
struct Chunk {
  static constexpr int kPerByte = weights_per_byte(kFormat);
  static constexpr int kHalfSteps = kPerByte * kWords;  // registers a lane gets of one row
  static constexpr int kBytes = 16 * kWords;            // of one row
  static constexpr int kWeights = kBytes * kPerByte;    // of one row
};

// The codes of the four bytes of `word`: byte b of codes[i] is code i of byte b.
template <Format kFormat>
__device__ __forceinline__ void decode(uint32_t word, uint32_t (&codes)[weights_per_byte(kFormat)]) {
  if constexpr (kFormat == Format::k2Bit) {
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[i] = word >> 2 * i & 0x03030303u;
  } else if constexpr (kFormat == Format::kInt4) {
    codes[0] = word & 0x0f0f0f0fu;
    codes[1] = word >> 4 & 0x0f0f0f0fu;
  } else if constexpr (kFormat == Format::kInt8) {
    codes[0] = word;
  } else {
    // A byte is a fraction: times 3 moves its next digit in front of the point, here from bits 0..7 to 8..9.
    uint32_t even = word & 0x00ff00ffu, odd = word >> 8 & 0x00ff00ffu;
#pragma unroll
    for (int i = 0; i < 5; ++i) {
      even *= 3;
      odd *= 3;
      codes[i] = __byte_perm(even, odd, 0x7351);  // bytes 1 and 3 of each
      even &= 0x00ff00ffu;
      odd &= 0x00ff00ffu;
    }
  }
}

// By how many bits decode_high() shifts codes.
constexpr int high_shift(Format format) { return format == Format::k2Bit ? 6 : format == Format::kInt4 ? 4 : 0; }

// The same, 2 ** high_shift times as large: a shift to the left is a multiplication to the GPU, on another pipe than
// the masks.
template <Format kFormat>
__device__ __forceinline__ void decode_high(uint32_t word, uint32_t (&codes)[weights_per_byte(kFormat)]) {
  if constexpr (kFormat == Format::k2Bit) {
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[i] = word << (6 - 2 * i) & 0xc0c0c0c0u;
  } else if constexpr (kFormat == Format::kInt4) {
    codes[0] = word << 4 & 0xf0f0f0f0u;
    codes[1] = word & 0xf0f0f0f0u;
  } else {
    decode<kFormat>(word, codes);
  }
}

// The same, scaled by two factors: 4 and 64 times as large in 2bit, those of neighbouring registers of a step alike.
// That takes one shift a word, instead of three.
template <Format kFormat>
__device__ __forceinline__ void decode_paired(uint32_t word, uint32_t (&codes)[weights_per_byte(kFormat)]) {
  if constexpr (kFormat == Format::k2Bit) {
    const uint32_t shifted = word << 2;
    codes[0] = shifted & 0x0c0c0c0cu;
    codes[1] = word & 0x0c0c0c0cu;
    codes[2] = shifted & 0xc0c0c0c0u;
    codes[3] = word & 0xc0c0c0c0u;
  } else {
    decode<kFormat>(word, codes);
  }
}

// By how much decode_pairs() makes ternary weights larger.
constexpr float pair_scale(Format format) { return format == Format::k2Bit ? 2.0f : 1.0f; }

// Of 16 codes of 2bit, 0 to 2, each less one modulo 4.
__device__ __forceinline__ uint32_t less_one(uint32_t word) { return ~(word | (word << 1 & 0xaaaaaaaau)); }

// The weights of `word` in bfloat16 or float16, two a register: first and second half of a step of 16, for each step.
//
// Of 2bit they are -2, 0 and 2, which are 0xc000, 0 and 0x4000 in both types: code - 1 at the top of a half. Pair i is
// codes i and i + 8. Of base3 a nibble of a byte permutation says for each byte which of the three low or high bytes it
// is; the pairs of step c are codes c of bytes 0 and 1, and of bytes 2 and 3.
template <Format kFormat, typename Value>
__device__ __forceinline__ void decode_pairs(uint32_t word, uint32_t (&pairs)[2 * weights_per_byte(kFormat)]) {
  constexpr int kPerByte = weights_per_byte(kFormat);
  if constexpr (kFormat == Format::k2Bit) {
    const uint32_t weights = less_one(word);
#pragma unroll
    for (int i = 0; i < 8; ++i) pairs[i] = weights << (14 - 2 * i) & 0xc000c000u;
  } else {
    constexpr bool kBFloat16 = std::is_same_v<Value, __nv_bfloat16>;
    constexpr uint32_t kLow = kBFloat16 ? 0x00800080u : 0, kHigh = kBFloat16 ? 0x003f00bfu : 0x003c00bcu;
    uint32_t codes[kPerByte];
    decode<kFormat>(word, codes);
#pragma unroll
    for (int c = 0; c < kPerByte; ++c) {
      const uint32_t nibbles = codes[c] * 0x11 + 0x40404040u;
      pairs[2 * c] = __byte_perm(kLow, kHigh, nibbles);
      pairs[2 * c + 1] = __byte_perm(kLow, kHigh, nibbles >> 16);
    }
  }
}

// Which weight of a word's share of K the `place`-th of pair 2 * c + half is.
template <Format kFormat>
__host__ __device__ constexpr int weight_of_pair(int c, int half, int place) {
  constexpr int kPerByte = weights_per_byte(kFormat);
  return kFormat == Format::k2Bit ? 2 * c + half + 8 * place : kPerByte * (2 * half + place) + c;
}

// The packed words of one lane for one row of one chunk.
template <int kWords>
struct Words {
  uint32_t word[kWords];
};

// Reads bytes [offset, offset + 4 * kWords) of a row of row_bytes; what is read behind it meets activations of 0. Where
// every row starts at a multiple of 16 (kAligned) that is one load. Else words are put together from the aligned words
// that they straddle, and near `end`, where the tensor ends, from bytes.
template <int kWords, bool kAligned>
__device__ __forceinline__ Words<kWords> load_words(const uint8_t* row, int64_t row_bytes, int64_t offset,
                                                    const uint8_t* end) {
  Words<kWords> result;
  const uint8_t* from = row + offset;
  if constexpr (kAligned && kWords == 4) {
    uint4 v = {0, 0, 0, 0};
    if (offset < row_bytes)
      asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                   : "l"(from));
    result.word[0] = v.x;
    result.word[1] = v.y;
    result.word[2] = v.z;
    result.word[3] = v.w;
  } else if (from + 4 * kWords + 4 <= end && offset < row_bytes) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(from);
    const auto* words = reinterpret_cast<const uint32_t*>(address & ~uintptr_t{3});
    const uint32_t shift = 8 * static_cast<uint32_t>(address & 3);
    uint32_t low = __ldg(words);
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const uint32_t high = __ldg(words + w + 1);
      result.word[w] = __funnelshift_r(low, high, shift);
      low = high;
    }
  } else {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      uint32_t word = 0;
#pragma unroll
      for (int b = 0; b < 4; ++b)
        if (offset + 4 * w + b < row_bytes) word |= static_cast<uint32_t>(__ldg(from + 4 * w + b)) << 8 * b;
      result.word[w] = word;
    }
  }
  return result;
}

// Programmatic dependent launch (sm_90): a kernel may start while the one before it still runs, and waits here for all
// of it. Elsewhere a kernel starts when the one before it has ended.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace bitlab::cuda
