// The sum of a row of float32 in the order in which PyTorch adds it on a CPU, so that the bits are the same.
//
// PyTorch's order (cascade_sum in ATen/native/cpu/SumKernel.cpp): four vectors at a time into as many partial sums,
// which go to the next of four levels after every 2**power steps, so that small values are not lost beside large ones.
// The lanes of its vectors depend on the CPU, and the order on its version: `lanes_of_order` finds out whether it is
// this.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace bitlab::cpu {

template <int kLanes>
float sum_in_order_of(const float* x, int64_t n) {
  constexpr int kVectors = 4, kLevels = 4, kStep = kVectors * kLanes;
  const int64_t whole = n / kLanes * kLanes, steps = n / kStep;
  int64_t log2_steps = 0;
  while ((int64_t{1} << log2_steps) < steps) ++log2_steps;
  const int64_t power = std::max<int64_t>(4, log2_steps / kLevels);
  float sums[kLevels][kStep] = {};
  for (int64_t i = 0; i < steps; ++i) {
    for (int lane = 0; lane < kStep; ++lane) sums[0][lane] += x[i * kStep + lane];
    for (int level = 1; level < kLevels && (i + 1) % (int64_t{1} << level * power) == 0; ++level) {
      for (int lane = 0; lane < kStep; ++lane) {
        sums[level][lane] += sums[level - 1][lane];
        sums[level - 1][lane] = 0.0f;
      }
    }
  }
  for (int level = 1; level < kLevels; ++level) {
    for (int lane = 0; lane < kStep; ++lane) sums[0][lane] += sums[level][lane];
  }
  for (int64_t i = steps * kStep; i < whole; ++i) sums[0][i % kLanes] += x[i];
  for (int lane = kLanes; lane < kStep; ++lane) sums[0][lane % kLanes] += sums[0][lane];
  float sum = 0.0f;
  for (int64_t i = whole; i < n; ++i) sum += x[i];
  for (int lane = 0; lane < kLanes; ++lane) sum += sums[0][lane];
  return sum;
}

// lanes: 4, 8 or 16, as `lanes_of_order` gives them.
inline float sum_in_order(const float* x, int64_t n, int lanes) {
  switch (lanes) {
    case 4: return sum_in_order_of<4>(x, n);
    case 8: return sum_in_order_of<8>(x, n);
    default: return sum_in_order_of<16>(x, n);
  }
}

// The lanes with which `sum_in_order` has the bits of `sum(x, n)` for rows of n random values; 0: it has them with
// none.
template <class Sum>
int lanes_of_order(int64_t n, const Sum& sum) {
  constexpr int kRows = 32;
  std::vector<int> fitting = {8, 4, 16};
  std::vector<float> x(static_cast<size_t>(n));
  uint32_t random = 1;
  for (int row = 0; row < kRows; ++row) {
    for (float& value : x) {
      random = random * 1664525 + 1013904223;
      value = static_cast<float>(random >> 8) * 0x1p-24f;
    }
    const float expected = sum(x.data(), n);
    std::erase_if(fitting, [&](int lanes) { return sum_in_order(x.data(), n, lanes) != expected; });
  }
  return fitting.empty() ? 0 : fitting.front();
}

}  // namespace bitlab::cpu
