// Attention of one position.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "checks.h"

namespace bitlab::cpu::test {

// Everything ends at a guard page; the definition sums in double.
bool check_attend(const Kernel& kernel, Dtype dtype) {
  const int64_t heads = between(1, kMaxHeads), dim = between(1, kMaxHeadDim), length = between(1, 90);
  const int64_t strides[] = {dim + between(0, 3), dim + between(0, 3), dim + between(0, 3)};  // of q, keys, values
  const int64_t rows[] = {heads, length, length};
  std::vector<std::unique_ptr<Guarded>> inputs;
  for (int i = 0; i < 3; ++i) {
    const int64_t count = (rows[i] - 1) * strides[i] + dim;
    inputs.push_back(std::make_unique<Guarded>(static_cast<size_t>(count * item_size(dtype))));
    for (int64_t j = 0; j < count; ++j) {
      put(inputs.back()->as<char>(), dtype, j, static_cast<float>(between(-1000, 1000)) / 300.0f);
    }
  }
  const auto value = [&](int i, int64_t row, int64_t at) -> double {
    return get(inputs[static_cast<size_t>(i)]->as<char>(), dtype, row * strides[i] + at);
  };
  Guarded scores(static_cast<size_t>(heads * length) * 4), y(static_cast<size_t>(heads * dim * item_size(dtype)));
  const float scale = static_cast<float>(between(0, 100)) / 400.0f;
  kernel.attend({.q = inputs[0]->as<char>(),
                 .keys = inputs[1]->as<char>(),
                 .values = inputs[2]->as<char>(),
                 .heads = heads,
                 .head_dim = dim,
                 .length = length,
                 .q_stride = strides[0],
                 .key_stride = strides[1],
                 .value_stride = strides[2],
                 .scale = scale,
                 .scores = scores.as<float>(),
                 .y = y.as<char>()},
                dtype);
  const double rounding = dtype == Dtype::kFloat32 ? 1e-5 : dtype == Dtype::kBFloat16 ? 1.0 / 128 : 1.0 / 1024;
  for (int64_t h = 0; h < heads; ++h) {
    std::vector<double> weights(static_cast<size_t>(length), 0.0);
    double largest = -1e300, total = 0.0;
    for (size_t t = 0; t < weights.size(); ++t) {
      for (int64_t i = 0; i < dim; ++i) weights[t] += scale * value(0, h, i) * value(1, static_cast<int64_t>(t), i);
      largest = std::max(largest, weights[t]);
    }
    for (double& weight : weights) total += weight = std::exp(weight - largest);
    for (int64_t i = 0; i < dim; ++i) {
      double expected = 0.0;
      for (size_t t = 0; t < weights.size(); ++t) expected += weights[t] / total * value(2, static_cast<int64_t>(t), i);
      const double error = std::abs(get(y.as<char>(), dtype, h * dim + i) - expected);
      if (!(error <= rounding * (std::abs(expected) + 0.1) + 1e-4)) return false;
    }
  }
  return true;
}

}  // namespace bitlab::cpu::test
