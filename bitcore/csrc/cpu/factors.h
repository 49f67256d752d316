// Factors that several operators compute, in one way, so that their results have the same bits.
#pragma once

#include <cmath>
#include <cstdint>

namespace bitlab::cpu {

// 1 / sqrt(mean(x * x) + eps)
inline float rms_factor(float sum_of_squares, int64_t n, float eps) {
  return 1.0f / std::sqrt(sum_of_squares / static_cast<float>(n) + eps);
}

// Of attention's scores.
inline float score_factor(int64_t head_dim) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
}

}  // namespace bitlab::cpu
