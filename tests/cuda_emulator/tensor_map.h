// A matrix that is copied in boxes.
#pragma once

#include <cstdint>
#include <cstring>

#include "machine.h"

namespace emulator {

struct alignas(64) TensorMap {
  uint8_t* matrix;
  int element_bytes;
  int64_t rows, columns, row_bytes;
  int box_rows, box_columns;
  bool swizzled;  // in shared memory, in pieces of 16 bytes among 1024

  // Calls visit(memory, shared memory, whether the element exists) for each element of a box.
  template <typename Visit>
  void for_each(int row, int column, uint32_t shared, const Visit& visit) const {
    if (shared % 128 != 0) fail("a box in shared memory that is not aligned");
    for (int r = 0; r < box_rows; ++r)
      for (int c = 0; c < box_columns; ++c) {
        uint32_t address = shared + static_cast<uint32_t>((r * box_columns + c) * element_bytes);
        if (swizzled) address ^= (address >> 7 & 7) << 4;
        const bool exists = row + r >= 0 && row + r < rows && column + c >= 0 && column + c < columns;
        visit(matrix + (row + r) * row_bytes + int64_t{column + c} * element_bytes, shared_bytes(address), exists);
      }
  }

  void read(int row, int column, uint32_t to) const {
    for_each(row, column, to, [this](const uint8_t* memory, uint8_t* shared, bool exists) {
      if (exists) {
        std::memcpy(shared, memory, static_cast<size_t>(element_bytes));
      } else {
        std::memset(shared, 0, static_cast<size_t>(element_bytes));
      }
    });
  }

  void write(int row, int column, uint32_t from) const {
    for_each(row, column, from, [this](uint8_t* memory, const uint8_t* shared, bool exists) {
      if (exists) std::memcpy(memory, shared, static_cast<size_t>(element_bytes));
    });
  }
};

}  // namespace emulator
