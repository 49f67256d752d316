// Every kernel that this CPU can run against a scalar definition, without torch: random shapes, tails and strides of
// scales, activations down to -128, and a page that may not be touched behind every buffer.
//
//     test_kernels [required kernel ...]     a required kernel that cannot run here is a failure
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../bitcore/csrc/cpu/dispatch.h"
#include "../../bitcore/csrc/cpu/float_formats.h"

namespace {

namespace cpu = bitlab::cpu;
using cpu::Dtype;

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

int item_size(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

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

bool check_quantize(const cpu::Kernel& kernel, Dtype dtype, int64_t k, int64_t plane) {
  Guarded x(static_cast<size_t>(k * item_size(dtype))), x_q(static_cast<size_t>(4 * plane));
  std::normal_distribution<float> normal(0.0f, std::pow(10.0f, static_cast<float>(between(-4, 4))));
  uint32_t largest = 0;
  for (int64_t i = 0; i < k; ++i) {
    put(x.as<char>(), dtype, i, normal(random_bits));
    largest = std::max(largest, cpu::bits_of(get(x.as<char>(), dtype, i)) & 0x7fffffff);
  }
  if (kernel.absmax_bits(x.as<char>(), dtype, k) != largest) return false;
  if (largest >= 0x7f800000) return true;  // float16 may overflow; the driver never quantizes such a row
  const float inverse = 1.0f / std::max(cpu::float_of(largest), 1e-5f) * 127.0f;
  const int32_t sum = kernel.quantize(x.as<char>(), dtype, k, inverse, x_q.as<int8_t>(), plane);
  int32_t expected_sum = 0;
  for (int64_t i = 0; i < 4 * plane; ++i) {
    const float value = i < k ? std::nearbyint(get(x.as<char>(), dtype, i) * inverse) : 0.0f;
    const int expected = static_cast<int>(std::min(std::max(value, -128.0f), 127.0f));
    if (x_q.as<int8_t>()[i % 4 * plane + i / 4] != expected) return false;
    expected_sum += expected;
  }
  return sum == expected_sum;
}

bool check_matmul(const cpu::Kernel& kernel, int64_t m, int64_t n, int64_t k, int64_t plane) {
  const int64_t row_bytes = (k + 3) / 4, stride = n + between(0, 3);
  Guarded x_q(static_cast<size_t>(4 * plane * m)), w(static_cast<size_t>(n * row_bytes));
  Guarded acc(static_cast<size_t>(((m - 1) * stride + n) * 4));
  const int64_t kind = between(0, 3);  // random, all lowest, all highest, lowest or highest
  for (int64_t i = 0; i < 4 * plane * m; ++i) {
    const int64_t position = i % (4 * plane) % plane * 4 + i % (4 * plane) / plane;
    const int64_t value = kind == 0   ? between(-128, 127)
                          : kind == 1 ? -128
                          : kind == 2 ? 127
                                      : between(0, 1) * 255 - 128;
    x_q.as<int8_t>()[i] = static_cast<int8_t>(position < k ? value : 0);
  }
  const int64_t highest_code = between(0, 1);
  for (int64_t i = 0; i < n * row_bytes; ++i) {
    int byte = 0;
    for (int j = 0; j < 4; ++j) byte |= static_cast<int>(highest_code ? 2 : between(0, 2)) << 2 * j;
    w.as<uint8_t>()[i] = static_cast<uint8_t>(byte);
  }
  kernel.matmul(x_q.as<int8_t>(), m, plane, w.as<uint8_t>(), n, row_bytes, acc.as<int32_t>(), stride);
  for (int64_t t = 0; t < m; ++t) {
    for (int64_t row = 0; row < n; ++row) {
      int64_t expected = 0;
      for (int64_t i = 0; i < 4 * row_bytes; ++i) {
        const int code = w.as<uint8_t>()[row * row_bytes + i / 4] >> 2 * (i % 4) & 3;
        expected += code * x_q.as<int8_t>()[(4 * t + i % 4) * plane + i / 4];
      }
      if (acc.as<int32_t>()[t * stride + row] != expected) return false;
    }
  }
  return true;
}

bool check_store(const cpu::Kernel& kernel, Dtype dtype, int64_t n) {
  const int64_t step = between(0, 1);
  const bool with_bias = between(0, 1) == 1;
  Guarded acc(static_cast<size_t>(4 * n)), scale(static_cast<size_t>(step == 0 ? 4 : 4 * n)),
      bias(static_cast<size_t>(4 * n));
  Guarded y(static_cast<size_t>(n * item_size(dtype)));
  const auto x_sum = static_cast<int32_t>(between(-1000, 1000));
  const float x_scale = between(0, 9) == 0 ? NAN : std::pow(10.0f, static_cast<float>(between(-9, 3)));
  for (int64_t i = 0; i < n; ++i) {
    acc.as<int32_t>()[i] = static_cast<int32_t>(between(-100000000, 100000000));
    bias.as<float>()[i] = static_cast<float>(between(-1000, 1000)) / 7.0f;
    if (i == 0 || step == 1) scale.as<float>()[i] = static_cast<float>(between(1, 1000)) / 333.0f;
  }
  kernel.store(acc.as<int32_t>(), n, x_sum, x_scale, scale.as<float>(), step, with_bias ? bias.as<float>() : nullptr,
               y.as<char>(), dtype);
  for (int64_t i = 0; i < n; ++i) {
    float expected = static_cast<float>(acc.as<int32_t>()[i] - x_sum) * (x_scale * scale.as<float>()[i * step]);
    if (with_bias) expected += bias.as<float>()[i];
    char rounded[4];
    put(rounded, dtype, 0, expected);
    const float want = get(rounded, dtype, 0), got = get(y.as<char>(), dtype, i);
    if (!(std::isnan(want) && std::isnan(got)) && cpu::bits_of(want) != cpu::bits_of(got)) return false;
  }
  return true;
}

bool check(const cpu::Kernel& kernel) {
  for (int trial = 0; trial < 400; ++trial) {
    const int64_t k = trial % 10 == 0 ? between(2000, 9000) : between(1, 700);
    const int64_t plane = ((k + 3) / 4 + cpu::kPlaneAlignment - 1) / cpu::kPlaneAlignment * cpu::kPlaneAlignment;
    const auto dtype = static_cast<Dtype>(between(0, 2));
    const int64_t m = between(1, kernel.token_tile), n = between(1, 21);
    const char* failed = !check_quantize(kernel, dtype, k, plane)      ? "quantize"
                         : !check_matmul(kernel, m, n, k, plane)       ? "matmul"
                         : !check_store(kernel, dtype, between(1, 40)) ? "store"
                                                                       : nullptr;
    if (failed != nullptr) {
      std::printf("%s: %s is wrong at m %ld, n %ld, k %ld, dtype %d\n", kernel.name, failed, static_cast<long>(m),
                  static_cast<long>(n), static_cast<long>(k), static_cast<int>(dtype));
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
