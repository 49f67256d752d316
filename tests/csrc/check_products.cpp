// Activations become int8 vectors, and vectors times packed weights int32 sums.
#include <algorithm>
#include <cmath>

#include "checks.h"

namespace bitlab::cpu::test {

bool check_quantize(const Kernel& kernel, const Sizes& sizes, Dtype dtype) {
  const int64_t k = sizes.k;
  const int digits = between(0, 1) == 0 ? 1 : kFloatDigits;
  Guarded x(static_cast<size_t>(k * item_size(dtype))), x_q(static_cast<size_t>(digits * sizes.vector_bytes));
  std::normal_distribution<float> normal(0.0f, std::pow(10.0f, static_cast<float>(between(-4, 4))));
  uint32_t largest = 0;
  for (int64_t i = 0; i < k; ++i) {
    put(x.as<char>(), dtype, i, normal(random_bits));
    largest = std::max(largest, bits_of(get(x.as<char>(), dtype, i)) & 0x7fffffff);
  }
  if (kernel.absmax_bits(x.as<char>(), dtype, k) != largest) return false;
  if (largest >= 0x7f800000) return true;  // float16 may overflow; the driver never quantizes such a row
  const float factor = (digits == 1 ? 127.0f : 127.0f * 65536.0f) / std::max(float_of(largest), 1e-5f);
  int32_t sums[kFloatDigits], expected_sums[kFloatDigits] = {};
  kernel.quantize(x.as<char>(), dtype, k, factor, digits, sizes.planes, x_q.as<int8_t>(), sizes.plane, sums);
  for (int64_t i = 0; i < sizes.bytes * sizes.planes; ++i) {
    auto rest = i < k ? static_cast<int64_t>(std::nearbyint(get(x.as<char>(), dtype, i) * factor)) : 0;
    for (int d = digits - 1; d >= 0; --d) {
      const int8_t digit = static_cast<int8_t>(rest);  // modulo 256, -128 to 127
      rest = (rest - digit) / 256;
      if (x_q.as<int8_t>()[d * sizes.vector_bytes + i % sizes.planes * sizes.plane + i / sizes.planes] != digit) {
        return false;
      }
      expected_sums[d] += digit;
    }
    if (rest != 0) return false;
  }
  return std::equal(sums, sums + digits, expected_sums);
}

// Vectors, weights and sums end at guard pages; rows and vectors may lie apart, as columns of a wider matrix do.
bool check_matmul(const Kernel& kernel, const Sizes& sizes, int64_t m, int64_t n) {
  const int64_t row_stride = sizes.bytes + (between(0, 1) == 0 ? 0 : between(1, 70));
  const int64_t acc_stride = n + between(0, 3);
  Guarded x_q(static_cast<size_t>(sizes.vector_bytes * m + kReadAhead));
  Guarded w(static_cast<size_t>((n - 1) * row_stride + sizes.bytes));
  Guarded acc(static_cast<size_t>(((m - 1) * acc_stride + n) * 4));
  const int64_t kind = between(0, 3);  // random, all lowest, all highest, lowest or highest
  for (int64_t i = 0; i < sizes.vector_bytes * m + kReadAhead; ++i) {
    const int64_t value = kind == 0   ? between(-128, 127)
                          : kind == 1 ? -128
                          : kind == 2 ? 127
                                      : between(0, 1) * 255 - 128;
    x_q.as<int8_t>()[i] = static_cast<int8_t>(value);
  }
  const bool highest = between(0, 1) == 1;
  const int made_signed = sizes.format == Format::kInt8 ? 128 - kernel.int8_zero : 0;
  for (int64_t i = 0; i < (n - 1) * row_stride + sizes.bytes; ++i) {
    w.as<uint8_t>()[i] = random_byte(sizes.format, highest);
  }
  kernel.matmul(sizes.format, {.x_q = x_q.as<int8_t>(),
                               .m = m,
                               .vector_stride = sizes.vector_bytes,
                               .plane = sizes.plane,
                               .w = w.as<uint8_t>(),
                               .n = n,
                               .row_stride = row_stride,
                               .bytes = sizes.bytes,
                               .acc = acc.as<int32_t>(),
                               .acc_stride = acc_stride});
  for (int64_t v = 0; v < m; ++v) {
    for (int64_t row = 0; row < n; ++row) {
      int64_t expected = 0;
      for (int64_t i = 0; i < sizes.bytes; ++i) {
        for (int j = 0; j < sizes.planes; ++j) {
          expected += (code_at(sizes.format, w.as<uint8_t>()[row * row_stride + i], j) - made_signed) *
                      x_q.as<int8_t>()[v * sizes.vector_bytes + j * sizes.plane + i];
        }
      }
      if (acc.as<int32_t>()[v * acc_stride + row] != expected) return false;
    }
  }
  return true;
}

bool check_base3_to_2bit(const Kernel& kernel, int64_t bytes) {
  const int64_t quarter = (bytes + 3) / 4 + between(0, 70);
  Guarded base3(static_cast<size_t>(bytes)), first_four(static_cast<size_t>(bytes));
  Guarded fifth(static_cast<size_t>(quarter));
  for (int64_t i = 0; i < bytes; ++i) base3.as<uint8_t>()[i] = random_byte(Format::kBase3, false);
  kernel.base3_to_2bit(base3.as<uint8_t>(), bytes, first_four.as<uint8_t>(), fifth.as<uint8_t>(), quarter);
  for (int64_t i = 0; i < 4 * quarter; ++i) {
    for (int j = 0; j < 5; ++j) {
      const int want = i < bytes ? code_at(Format::kBase3, base3.as<uint8_t>()[i], j) : 0;
      if (j < 4 && i >= bytes) continue;
      const int got = j < 4 ? code_at(Format::k2Bit, first_four.as<uint8_t>()[i], j)
                            : code_at(Format::k2Bit, fifth.as<uint8_t>()[i % quarter], static_cast<int>(i / quarter));
      if (got != want) return false;
    }
  }
  return true;
}

}  // namespace bitlab::cpu::test
