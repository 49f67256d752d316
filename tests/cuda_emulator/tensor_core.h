// Products of tensor cores, by the layout of their operands in the PTX ISA.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <type_traits>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "machine.h"

namespace emulator {

inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
inline float to_float(__half value) { return __half2float(value); }

using Registers = std::array<uint32_t, 4>;  // of a lane: rows g and g + 8, the first half of K and the second

// sums(i), of this lane, += rows of codes u8 * columns of s8. Of m16n8k32 and of 8 columns of wgmma.
template <int kDepth, typename Column, typename Sums>
void add_product(const std::array<Registers, kLanes>& left, const Column& column, uint32_t first_column,
                 const Sums& sums) {
  const uint32_t lane = threadIdx.x % kLanes;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t row = lane / 4, n = first_column + lane % 4 * 2 + i % 2;
    uint32_t sum = static_cast<uint32_t>(sums(static_cast<int>(i)));
    for (uint32_t k = 0; k < kDepth; ++k) {
      const auto code = static_cast<uint8_t>(left[4 * row + k % 16 / 4][k / 16 * 2 + i / 2] >> k % 4 * 8);
      sum += static_cast<uint32_t>(int{code} * column(n, k));
    }
    sums(static_cast<int>(i)) = static_cast<int>(sum);
  }
}

// A lane's share of wgmma's product of a warpgroup: what BITLAB_PRODUCT of wgmma.cuh issues. `columns` is a matrix
// descriptor of columns whose K lies together, swizzled. Operands are read when the product happens.
template <typename Value, int kColumns, typename Sum>
void multiply_async(Sum (&sums)[kColumns / 2], const uint32_t (&codes)[4], uint64_t columns) {
  const auto all_codes = exchange(&codes[0]);
  multiply_later([&sums, all_codes, columns] {
    std::array<Registers, kLanes> left;
    for (size_t lane = 0; lane < kLanes; ++lane) std::copy_n(all_codes[lane], 4, left[lane].begin());
    const uint32_t start = static_cast<uint32_t>(columns & 0x3fff) << 4;
    const uint32_t eight_columns = static_cast<uint32_t>(columns >> 32 & 0x3fff) << 4;
    const int mode = static_cast<int>(columns >> 62);  // 1, 2, 3: 128, 64, 32 bytes of a column together
    if (mode == 0) fail("a matrix descriptor without swizzle");
    const uint32_t column_bytes = 256u >> mode, pieces = column_bytes / 16;
    const auto at = [&]<typename Element>(uint32_t n, uint32_t byte, Element*) {
      uint32_t address = start + n / 8 * eight_columns + n % 8 * column_bytes + byte;
      address ^= (address >> 7 & (pieces - 1)) << 4;
      return at_shared<Element>(address);
    };
    for (uint32_t first = 0; first < kColumns; first += 8) {
      Sum* const own = &sums[first / 2];
      if constexpr (std::is_same_v<Value, int8_t>) {
        const auto column = [&](uint32_t n, uint32_t k) { return at(n, k, static_cast<int8_t*>(nullptr)); };
        add_product<32>(left, column, first, [own](int i) -> int& { return own[i]; });
      } else {
        const uint32_t lane = threadIdx.x % kLanes;
        const auto value_of = [](uint16_t bits) { return to_float(std::bit_cast<Value>(bits)); };
        for (uint32_t i = 0; i < 4; ++i)
          for (uint32_t k = 0; k < 16; ++k) {
            const uint32_t pair = left[lane / 4 * 4 + k % 8 / 2][k / 8 * 2 + i / 2];
            own[i] += value_of(static_cast<uint16_t>(pair >> k % 2 * 16)) *
                      value_of(at(first + lane % 4 * 2 + i % 2, 2 * k, static_cast<uint16_t*>(nullptr)));
          }
      }
    }
  });
}

// Eight rows of 16 bytes a matrix, whose addresses the lanes name, get what the lanes hold with rows and columns
// exchanged.
template <size_t kMatrices>
void store_transposed(uint32_t address, const std::array<uint32_t, kMatrices>& pairs) {
  const auto rows = exchange(address);
  const uint32_t lane = threadIdx.x % kLanes;
  for (uint32_t i = 0; i < kMatrices; ++i)
    for (uint32_t j = 0; j < 2; ++j)
      at_shared<std::array<uint16_t, 8>>(rows[8 * i + lane % 4 * 2 + j])[lane / 4] =
          static_cast<uint16_t>(pairs[i] >> 16 * j);
}

}  // namespace emulator
