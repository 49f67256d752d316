// What becomes of the sums, and the small operators between layers: each a known sequence of roundings.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "checks.h"

namespace bitlab::cpu::test {

bool check_outputs(const Kernel& kernel, Dtype dtype, int64_t n) {
  const int64_t stride = between(0, 2);
  const int digits = between(0, 1) == 0 ? 1 : kFloatDigits;
  const bool with_bias = between(0, 1) == 1, with_zero_point = between(0, 1) == 1, add = between(0, 1) == 1;
  const auto scales = static_cast<size_t>((n - 1) * stride + 1), count = static_cast<size_t>(n);
  Guarded acc(4 * count * static_cast<size_t>(digits)), scale(4 * scales), zero_point(scales);
  Guarded bias(4 * count), total(4 * count), y(count * static_cast<size_t>(item_size(dtype)));
  int32_t x_sums[kFloatDigits];
  for (int32_t& sum : x_sums) sum = static_cast<int32_t>(between(-1000, 1000));
  const float x_scale = between(0, 9) == 0 ? NAN : std::pow(10.0f, static_cast<float>(between(-9, 3)));
  const float factor = static_cast<float>(between(1, 9));
  for (size_t i = 0; i < scales; ++i) {
    scale.as<float>()[i] = static_cast<float>(between(1, 1000)) / 333.0f;
    zero_point.as<int8_t>()[i] = static_cast<int8_t>(between(-8, 7));
  }
  std::vector<float> expected(count);
  for (size_t i = 0; i < count; ++i) {
    bias.as<float>()[i] = static_cast<float>(between(-1000, 1000)) / 7.0f;
    total.as<float>()[i] = static_cast<float>(between(-1000, 1000)) / 11.0f;
    const size_t at = i * static_cast<size_t>(stride);
    float product = 0;
    for (int d = 0; d < digits; ++d) {
      const auto sum = static_cast<int32_t>(between(-100000000, 100000000));
      acc.as<int32_t>()[static_cast<size_t>(d) * count + i] = sum;
      const int32_t zero = 5 + (with_zero_point ? zero_point.as<int8_t>()[at] : 0);
      product = product * 256.0f + static_cast<float>(sum - zero * x_sums[d]);
    }
    expected[i] = product * (x_scale * scale.as<float>()[at]);
    if (add) expected[i] = total.as<float>()[i] + expected[i];
    expected[i] = expected[i] * factor;
    if (with_bias) expected[i] += bias.as<float>()[i];
  }
  kernel.scale_sums({.acc = acc.as<int32_t>(),
                     .acc_stride = n,
                     .digits = digits,
                     .x_sums = x_sums,
                     .code_of_zero = 5,
                     .zero_point = with_zero_point ? zero_point.as<int8_t>() : nullptr,
                     .x_scale = x_scale,
                     .w_scale = scale.as<float>(),
                     .scale_stride = stride},
                    n, add, total.as<float>());
  kernel.write(total.as<float>(), n, factor, with_bias ? bias.as<float>() : nullptr, y.as<char>(), dtype);
  for (int64_t i = 0; i < n; ++i) {
    char rounded[4];
    put(rounded, dtype, 0, expected[static_cast<size_t>(i)]);
    const float want = get(rounded, dtype, 0), got = get(y.as<char>(), dtype, i);
    if (!(std::isnan(want) && std::isnan(got)) && bits_of(want) != bits_of(got)) return false;
  }
  return true;
}

// square, normalize, rotate and combine: one operation after the other, so every bit is known.
bool check_elementwise(const Kernel& kernel, Dtype dtype) {
  const int64_t n = 2 * between(1, 150), half = n / 2;
  const auto bytes = static_cast<size_t>(n * item_size(dtype));
  Guarded x(bytes), cos(bytes), sin(bytes), y(bytes), squares(static_cast<size_t>(4 * n));
  for (Guarded* buffer : {&x, &cos, &sin}) {
    for (int64_t i = 0; i < n; ++i) put(buffer->as<char>(), dtype, i, static_cast<float>(between(-999, 999)) / 333.0f);
  }
  const auto at = [&](Guarded& buffer, int64_t i) { return get(buffer.as<char>(), dtype, i); };
  kernel.square(x.as<char>(), n, squares.as<float>(), dtype);
  for (int64_t i = 0; i < n; ++i) {
    if (squares.as<float>()[i] != at(x, i) * at(x, i)) return false;
  }
  const float factor = static_cast<float>(between(1, 1000)) / 77.0f;
  kernel.normalize(x.as<char>(), cos.as<char>(), n, factor, y.as<char>(), dtype);
  for (int64_t i = 0; i < n; ++i) {
    const float scaled = at(x, i) * factor;
    if (at(y, i) != rounded(scaled * at(cos, i), dtype)) return false;
  }
  kernel.rotate(x.as<char>(), cos.as<char>(), sin.as<char>(), n, y.as<char>(), dtype);
  for (int64_t i = 0; i < n; ++i) {
    const float own = rounded(at(x, i) * at(cos, i), dtype), other = at(x, (i + half) % n) * at(sin, i);
    if (at(y, i) != rounded(own + other, dtype)) return false;
  }
  for (const Combination combination : {Combination::kAdd, Combination::kMultiply, Combination::kMultiplySquaredRelu}) {
    memcpy(y.as<char>(), sin.as<char>(), bytes);
    kernel.combine(combination, x.as<char>(), n, y.as<char>(), dtype);
    for (int64_t i = 0; i < n; ++i) {
      const float before = at(sin, i), positive = std::max(before, 0.0f);
      const float expected = combination == Combination::kAdd        ? before + at(x, i)
                             : combination == Combination::kMultiply ? before * at(x, i)
                                                                     : rounded(positive * positive, dtype) * at(x, i);
      if (at(y, i) != rounded(expected, dtype)) return false;
    }
  }
  return true;
}

}  // namespace bitlab::cpu::test
