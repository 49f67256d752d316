// Every kernel that this CPU can run against a scalar definition, without torch: all formats, random shapes, tails and
// strides, activations down to -128, and a page that may not be touched behind every buffer.
//
//     test_kernels [required kernel ...]     a required kernel that cannot run here is a failure
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../bitcore/csrc/cpu/dispatch.h"
#include "../../bitcore/csrc/cpu/float_formats.h"
#include "../../bitcore/csrc/cpu/linear.h"

namespace {

namespace cpu = bitlab::cpu;
using cpu::Dtype;
using cpu::item_size;

// Memory whose last byte lies before a page that cannot be read or written. 64-byte aligned if the size is a multiple
// of 64.
class Guarded {
 public:
  explicit Guarded(size_t size) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = (size + page - 1) / page * page + page;
    base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_ + mapped_ - page, page, PROT_NONE);
    data_ = base_ + mapped_ - page - size;
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }

 private:
  char* base_;
  char* data_;
  size_t mapped_;
};

std::mt19937 random_bits(std::random_device{}());

int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_bits); }

float get(const char* x, Dtype dtype, int64_t i) {
  if (dtype == Dtype::kFloat32) return reinterpret_cast<const float*>(x)[i];
  const uint16_t half = reinterpret_cast<const uint16_t*>(x)[i];
  return dtype == Dtype::kBFloat16 ? cpu::from_bfloat16(half) : cpu::from_float16(half);
}

void put(char* x, Dtype dtype, int64_t i, float value) {
  if (dtype == Dtype::kFloat32) {
    reinterpret_cast<float*>(x)[i] = value;
  } else {
    reinterpret_cast<uint16_t*>(x)[i] = dtype == Dtype::kBFloat16 ? cpu::to_bfloat16(value) : cpu::to_float16(value);
  }
}

// The sizes of one trial: K is what its weights and activations have in common.
struct Sizes {
  cpu::Format format;
  int64_t k;
  int planes = cpu::weights_per_byte(format);
  int64_t bytes = (k + planes - 1) / planes;
  int64_t plane = (bytes + cpu::kPlaneAlignment - 1) / cpu::kPlaneAlignment * cpu::kPlaneAlignment;
  int64_t vector_bytes = planes * plane;
};

bool check_quantize(const cpu::Kernel& kernel, const Sizes& sizes, Dtype dtype) {
  const int64_t k = sizes.k;
  const int digits = between(0, 1) == 0 ? 1 : cpu::kFloatDigits;
  Guarded x(static_cast<size_t>(k * item_size(dtype))), x_q(static_cast<size_t>(digits * sizes.vector_bytes));
  std::normal_distribution<float> normal(0.0f, std::pow(10.0f, static_cast<float>(between(-4, 4))));
  uint32_t largest = 0;
  for (int64_t i = 0; i < k; ++i) {
    put(x.as<char>(), dtype, i, normal(random_bits));
    largest = std::max(largest, cpu::bits_of(get(x.as<char>(), dtype, i)) & 0x7fffffff);
  }
  if (kernel.absmax_bits(x.as<char>(), dtype, k) != largest) return false;
  if (largest >= 0x7f800000) return true;  // float16 may overflow; the driver never quantizes such a row
  const float factor = (digits == 1 ? 127.0f : 127.0f * 65536.0f) / std::max(cpu::float_of(largest), 1e-5f);
  int32_t sums[cpu::kFloatDigits], expected_sums[cpu::kFloatDigits] = {};
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

int code_at(cpu::Format format, uint8_t byte, int place) {
  if (format == cpu::Format::k2Bit) return byte >> 2 * place & 3;
  if (format == cpu::Format::kInt4) return byte >> 4 * place & 15;
  if (format == cpu::Format::kInt8) return byte;
  for (int i = 0; i < place; ++i) byte = static_cast<uint8_t>(3 * byte);
  return 3 * byte >> 8;
}

uint8_t random_byte(cpu::Format format, bool highest) {
  if (format == cpu::Format::kInt4 || format == cpu::Format::kInt8) {
    return static_cast<uint8_t>(highest ? 255 : between(0, 1) * between(0, 255));
  }
  if (format == cpu::Format::kBase3) return static_cast<uint8_t>((256 * (highest ? 242 : between(0, 242)) + 242) / 243);
  int byte = 0;
  for (int j = 0; j < 4; ++j) byte |= static_cast<int>(highest ? 2 : between(0, 2)) << 2 * j;
  return static_cast<uint8_t>(byte);
}

// Vectors, weights and sums end at guard pages; rows and vectors may lie apart, as columns of a wider matrix do.
bool check_matmul(const cpu::Kernel& kernel, const Sizes& sizes, int64_t m, int64_t n) {
  const int64_t row_stride = sizes.bytes + (between(0, 1) == 0 ? 0 : between(1, 70));
  const int64_t acc_stride = n + between(0, 3);
  Guarded x_q(static_cast<size_t>(sizes.vector_bytes * m + cpu::kReadAhead));
  Guarded w(static_cast<size_t>((n - 1) * row_stride + sizes.bytes));
  Guarded acc(static_cast<size_t>(((m - 1) * acc_stride + n) * 4));
  const int64_t kind = between(0, 3);  // random, all lowest, all highest, lowest or highest
  for (int64_t i = 0; i < sizes.vector_bytes * m + cpu::kReadAhead; ++i) {
    const int64_t value = kind == 0   ? between(-128, 127)
                          : kind == 1 ? -128
                          : kind == 2 ? 127
                                      : between(0, 1) * 255 - 128;
    x_q.as<int8_t>()[i] = static_cast<int8_t>(value);
  }
  const bool highest = between(0, 1) == 1;
  const int made_signed = sizes.format == cpu::Format::kInt8 ? 128 - kernel.int8_zero : 0;
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

bool check_base3_to_2bit(const cpu::Kernel& kernel, int64_t bytes) {
  const int64_t quarter = (bytes + 3) / 4 + between(0, 70);
  Guarded base3(static_cast<size_t>(bytes)), first_four(static_cast<size_t>(bytes));
  Guarded fifth(static_cast<size_t>(quarter));
  for (int64_t i = 0; i < bytes; ++i) base3.as<uint8_t>()[i] = random_byte(cpu::Format::kBase3, false);
  kernel.base3_to_2bit(base3.as<uint8_t>(), bytes, first_four.as<uint8_t>(), fifth.as<uint8_t>(), quarter);
  for (int64_t i = 0; i < 4 * quarter; ++i) {
    for (int j = 0; j < 5; ++j) {
      const int want = i < bytes ? code_at(cpu::Format::kBase3, base3.as<uint8_t>()[i], j) : 0;
      if (j < 4 && i >= bytes) continue;
      const int got =
          j < 4 ? code_at(cpu::Format::k2Bit, first_four.as<uint8_t>()[i], j)
                : code_at(cpu::Format::k2Bit, fifth.as<uint8_t>()[i % quarter], static_cast<int>(i / quarter));
      if (got != want) return false;
    }
  }
  return true;
}

bool check_outputs(const cpu::Kernel& kernel, Dtype dtype, int64_t n) {
  const int64_t stride = between(0, 2);
  const int digits = between(0, 1) == 0 ? 1 : cpu::kFloatDigits;
  const bool with_bias = between(0, 1) == 1, with_zero_point = between(0, 1) == 1, add = between(0, 1) == 1;
  const auto scales = static_cast<size_t>((n - 1) * stride + 1), count = static_cast<size_t>(n);
  Guarded acc(4 * count * static_cast<size_t>(digits)), scale(4 * scales), zero_point(scales);
  Guarded bias(4 * count), total(4 * count), y(count * static_cast<size_t>(item_size(dtype)));
  int32_t x_sums[cpu::kFloatDigits];
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
    if (!(std::isnan(want) && std::isnan(got)) && cpu::bits_of(want) != cpu::bits_of(got)) return false;
  }
  return true;
}

float rounded(float value, Dtype dtype) {
  char bytes[4];
  put(bytes, dtype, 0, value);
  return get(bytes, dtype, 0);
}

// square, normalize and rotate: one operation after the other, so every bit is known.
bool check_elementwise(const cpu::Kernel& kernel, Dtype dtype) {
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
  return true;
}

// Everything ends at a guard page; the definition sums in double.
bool check_attend(const cpu::Kernel& kernel, Dtype dtype) {
  const int64_t heads = between(1, cpu::kMaxHeads), dim = between(1, cpu::kMaxHeadDim), length = between(1, 90);
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

// Whole calls of two weights: nothing outside of their buffers is touched, and every kernel gives the bits of portable.
bool check_linear(const cpu::Kernel& kernel, Dtype dtype) {
  const auto format = static_cast<cpu::Format>(between(0, 3));
  const Sizes sizes{format, between(1, 900)};
  const int64_t m = between(1, 40), rows[] = {between(1, 140), between(0, 9)};
  const int64_t group_size = between(0, 2) == 0 ? sizes.planes * between(1, 40) : 0;
  const int64_t groups = group_size == 0 ? 1 : (sizes.k + group_size - 1) / group_size;
  const int64_t x_stride = sizes.k + between(0, 5);
  Guarded x(static_cast<size_t>(((m - 1) * x_stride + sizes.k) * item_size(dtype)));
  for (int64_t i = 0; i < (m - 1) * x_stride + sizes.k; ++i) {
    put(x.as<char>(), dtype, i, static_cast<float>(between(-1000, 1000)) / 77.0f);
  }
  std::vector<std::unique_ptr<Guarded>> buffers;
  std::vector<cpu::Weight> weights;
  for (const int64_t n : rows) {
    for (const int64_t size : {n * sizes.bytes, 4 * n * groups, n * m * item_size(dtype), n * m * item_size(dtype)}) {
      buffers.push_back(std::make_unique<Guarded>(static_cast<size_t>(size)));
    }
    Guarded &packed = *buffers[buffers.size() - 4], &scale = *buffers[buffers.size() - 3];
    for (int64_t i = 0; i < n * sizes.bytes; ++i) packed.as<uint8_t>()[i] = random_byte(format, false);
    for (int64_t i = 0; i < n * groups; ++i) scale.as<float>()[i] = static_cast<float>(between(1, 1000)) / 333.0f;
    weights.push_back({packed.as<uint8_t>(), n, scale.as<float>(), groups, nullptr, nullptr, nullptr});
  }
  const cpu::Activations activations{x.as<char>(), dtype,    m,
                                     sizes.k,      x_stride, static_cast<cpu::Quantization>(between(0, 2))};
  const cpu::Layout layout{format, group_size};
  cpu::Scratch scratch;
  for (size_t run = 0; run < 2; ++run) {
    for (size_t i = 0; i < 2; ++i) weights[i].y = buffers[4 * i + 2 + run]->as<char>();
    cpu::Linear linear(run == 0 ? kernel : cpu::kPortable, layout, activations, weights.data(), 2, scratch);
    linear.run([](int64_t count, int64_t, const auto& work) {
      const int64_t middle = between(0, count);
      work(0, middle);
      work(middle, count);
    });
  }
  return std::memcmp(buffers[2]->as<char>(), buffers[3]->as<char>(),
                     static_cast<size_t>(rows[0] * m * item_size(dtype))) == 0 &&
         std::memcmp(buffers[6]->as<char>(), buffers[7]->as<char>(),
                     static_cast<size_t>(rows[1] * m * item_size(dtype))) == 0;
}

bool check(const cpu::Kernel& kernel) {
  for (int trial = 0; trial < 800; ++trial) {
    const Sizes sizes{static_cast<cpu::Format>(trial % 4), trial % 10 == 0 ? between(2000, 9000) : between(1, 700)};
    const auto dtype = static_cast<Dtype>(between(0, 2));
    const int64_t m = between(1, 9), n = between(1, 21);
    const char* failed = !check_quantize(kernel, sizes, dtype)            ? "quantize"
                         : !check_matmul(kernel, sizes, m, n)             ? "matmul"
                         : !check_base3_to_2bit(kernel, sizes.bytes)      ? "base3_to_2bit"
                         : !check_outputs(kernel, dtype, between(1, 40))  ? "scale_sums or write"
                         : !check_linear(kernel, dtype)                   ? "a whole call"
                         : !check_elementwise(kernel, dtype)              ? "square, normalize or rotate"
                         : trial % 8 == 0 && !check_attend(kernel, dtype) ? "attend"
                                                                          : nullptr;
    if (failed != nullptr) {
      std::printf("%s: %s is wrong at m %ld, n %ld, k %ld, format %d, dtype %d\n", kernel.name, failed,
                  static_cast<long>(m), static_cast<long>(n), static_cast<long>(sizes.k),
                  static_cast<int>(sizes.format), static_cast<int>(dtype));
      return false;
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> required(argv + 1, argv + argc);
  int passed = 0, failed = 0, skipped = 0;
  std::vector<std::string> seen;
  for (int i = 0; i < cpu::kernel_count(); ++i) {
    const cpu::Kernel& kernel = cpu::kernel_at(i);
    if (cpu::missing_features(kernel) != 0) {
      std::printf("%s: this CPU cannot run it\n", kernel.name);
      ++skipped;
      continue;
    }
    seen.emplace_back(kernel.name);
    const bool good = check(kernel);
    std::printf("%s: %s\n", kernel.name, good ? "equal to the definition" : "WRONG");
    ++(good ? passed : failed);
  }
  for (const std::string& name : required) {
    if (std::find(seen.begin(), seen.end(), name) == seen.end()) {
      std::printf("%s: required, but it did not run\n", name.c_str());
      ++failed;
    }
  }
  std::printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
  return failed == 0 ? 0 : 1;
}
