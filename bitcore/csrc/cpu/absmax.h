// The int8 scale of activations, as bitcore.quantizers defines it.
#pragma once

#include <algorithm>
#include <limits>

#include "float_formats.h"

namespace bitlab::cpu {

struct Int8Scale {
  bool finite;
  float factor;  // of x
  float scale;   // of q; NaN where x is not finite, so that all that comes of it is
};

// From the bits of max(abs(x)): m = that, at least 1e-5, q = rint(x * (1 / m * 127)), scale = m / 127; the reciprocal
// is rounded before it is multiplied, as PyTorch does in `127 / m`.
inline Int8Scale int8_scale(uint32_t absmax_bits) {
  const float largest = std::max(float_of(absmax_bits), 1e-5f);
  if (absmax_bits >= 0x7f800000) return {false, 0.0f, std::numeric_limits<float>::quiet_NaN()};
  return {true, 1.0f / largest * 127.0f, largest / 127.0f};
}

}  // namespace bitlab::cpu
