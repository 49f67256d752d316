// Packed weights on their way to registers through stages in shared memory: a lane copies the 16 bytes of a row's chunk
// that it will decode, and reads back what it copied, so lanes wait for their own copies alone. Only where rows do not
// start at multiples of 16 a lane also reads its right neighbour's first bytes.
#pragma once

#include "async_copy.cuh"
#include "fragments.cuh"

namespace bitlab::cuda {

constexpr int kChunkBytes = 64;  // of a row

// Bytes of a row in a stage. Rows that do not start at multiples of 16 are copied with what surrounds them.
template <bool kAligned>
constexpr int kRowStage = kAligned ? kChunkBytes : kChunkBytes + 16;

// Where this lane's bytes lie in a stage: those of row lane / 4, then of row lane / 4 + 8, + 16, ...
template <bool kAligned>
__device__ __forceinline__ uint32_t place_in_stage() {
  return threadIdx.x % 32 / 4 * kRowStage<kAligned> + threadIdx.x % 4 * 16;
}

// 16 aligned bytes of which some may lie outside of the weight: those do not matter, and may not be read.
__device__ __forceinline__ void copy_inside(const Weight& weight, int64_t row_bytes, const uint8_t* from, uint32_t to) {
  const uint8_t *begin = weight.packed, *end = begin + weight.n * row_bytes;
  if (from >= begin && from + 16 <= end) {
    copy_16_bytes(to, from);
  } else {
#pragma unroll 1
    for (int i = 0; i < 16; ++i) {
      const uint32_t byte = from + i >= begin && from + i < end ? from[i] : 0;
      asm volatile("st.shared.u8 [%0], %1;" ::"r"(to + i), "r"(byte) : "memory");
    }
  }
}

// Copies this lane's share of a chunk of `row`, `offset` bytes behind the row's start; where kAligned that is inside
// the row.
template <bool kAligned>
__device__ __forceinline__ void copy_share(const Weight& weight, int64_t row_bytes, const uint8_t* row, int offset,
                                           uint32_t to) {
  const uint8_t* from = row + offset;
  if constexpr (kAligned) {
    copy_16_bytes(to, from);
  } else {
    const uint8_t* aligned = from - (reinterpret_cast<uintptr_t>(row) & 15);
    copy_inside(weight, row_bytes, aligned, to);
    if (threadIdx.x % 4 == 3) copy_inside(weight, row_bytes, aligned + 16, to + 16);
  }
}

// By how many bytes a row's copy lies behind the place of an aligned one.
template <bool kAligned>
__device__ __forceinline__ uint32_t shift_of_row(const uint8_t* row) {
  return kAligned ? 0 : static_cast<uint32_t>(reinterpret_cast<uintptr_t>(row)) & 15;
}

__device__ __forceinline__ Words<4> load_shared_words(uint32_t from) {
  Words<4> result;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(result.word[0]), "=r"(result.word[1]), "=r"(result.word[2]), "=r"(result.word[3])
               : "r"(from));
  return result;
}

// 16 bytes that begin `bits` bits, modulo 32, behind `from`, put together from the five words that they straddle.
__device__ __forceinline__ Words<4> straddled_words(uint32_t from, uint32_t bits) {
  Words<4> result;
  uint32_t words[5];
#pragma unroll
  for (int w = 0; w < 5; ++w) asm volatile("ld.shared.u32 %0, [%1];" : "=r"(words[w]) : "r"(from + 4 * w));
#pragma unroll
  for (int w = 0; w < 4; ++w) result.word[w] = __funnelshift_r(words[w], words[w + 1], bits);
  return result;
}

// This lane's 16 bytes of a row whose share lies at `from`.
template <bool kAligned>
__device__ __forceinline__ Words<4> staged_words(uint32_t from, uint32_t shift) {
  if constexpr (kAligned) return load_shared_words(from);
  return straddled_words(from + (shift & ~3u), shift * 8);
}

// The codes of a lane's words, register r of fragments.cuh, as decode_paired() scales them.
template <Format kFormat>
__device__ __forceinline__ void decode_words(const Words<4>& words, uint32_t (&codes)[4 * weights_per_byte(kFormat)]) {
  constexpr int kPerByte = weights_per_byte(kFormat);
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    uint32_t of_word[kPerByte];
    decode_paired<kFormat>(words.word[w], of_word);
#pragma unroll
    for (int i = 0; i < kPerByte; ++i) codes[w * kPerByte + i] = of_word[i];
  }
}

// The sum of both, with decode_words' scales taken back: of products with registers r, r + 1 where r % 4 is 0, and 2.
template <Format kFormat>
__device__ __forceinline__ int sum_of_pairs(int first, int second) {
  return kFormat == Format::k2Bit ? (first >> 2) + (second >> 6) : first + second;
}

}  // namespace bitlab::cuda
