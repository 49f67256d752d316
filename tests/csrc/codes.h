// Packed weights of every format as the tests see them: their sizes, their codes, random bytes of them.
#pragma once

#include "guarded.h"

namespace bitlab::cpu::test {

// The sizes of one trial: K is what its weights and activations have in common.
struct Sizes {
  Format format;
  int64_t k;
  int planes = weights_per_byte(format);
  int64_t bytes = (k + planes - 1) / planes;
  int64_t plane = (bytes + kPlaneAlignment - 1) / kPlaneAlignment * kPlaneAlignment;
  int64_t vector_bytes = planes * plane;
};

inline int code_at(Format format, uint8_t byte, int place) {
  if (format == Format::k2Bit) return byte >> 2 * place & 3;
  if (format == Format::kInt4) return byte >> 4 * place & 15;
  if (format == Format::kInt8) return byte;
  for (int i = 0; i < place; ++i) byte = static_cast<uint8_t>(3 * byte);
  return 3 * byte >> 8;
}

inline uint8_t random_byte(Format format, bool highest) {
  if (format == Format::kInt4 || format == Format::kInt8) {
    return static_cast<uint8_t>(highest ? 255 : between(0, 1) * between(0, 255));
  }
  if (format == Format::kBase3) return static_cast<uint8_t>((256 * (highest ? 242 : between(0, 242)) + 242) / 243);
  int byte = 0;
  for (int j = 0; j < 4; ++j) byte |= static_cast<int>(highest ? 2 : between(0, 2)) << 2 * j;
  return static_cast<uint8_t>(byte);
}

}  // namespace bitlab::cpu::test
