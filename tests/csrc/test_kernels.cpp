// Every kernel that this CPU can run against a scalar definition, without torch: all formats, random shapes, tails and
// strides, activations down to -128, and a page that may not be touched behind every buffer.
//
//     test_kernels [required kernel ...]     a required kernel that cannot run here is a failure
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "../../bitcore/csrc/cpu/dispatch.h"
#include "checks.h"

namespace bitlab::cpu::test {
namespace {

bool check(const Kernel& kernel) {
  for (int trial = 0; trial < 800; ++trial) {
    const Sizes sizes{static_cast<Format>(trial % 4), trial % 10 == 0 ? between(2000, 9000) : between(1, 700)};
    const auto dtype = static_cast<Dtype>(between(0, 2));
    const int64_t m = between(1, 9), n = between(1, 21);
    const char* failed = !check_quantize(kernel, sizes, dtype)            ? "quantize"
                         : !check_matmul(kernel, sizes, m, n)             ? "matmul"
                         : !check_base3_to_2bit(kernel, sizes.bytes)      ? "base3_to_2bit"
                         : !check_outputs(kernel, dtype, between(1, 40))  ? "scale_sums or write"
                         : !check_linear(kernel, dtype)                   ? "a whole call"
                         : !check_elementwise(kernel, dtype)              ? "square, normalize, rotate or combine"
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
}  // namespace bitlab::cpu::test

int main(int argc, char** argv) {
  namespace cpu = bitlab::cpu;
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
    const bool good = bitlab::cpu::test::check(kernel);
    std::printf("%s: %s\n", kernel.name, good ? "equal to the definition" : "WRONG");
    ++(good ? passed : failed);
  }
  for (const std::string& name : required) {
    if (std::find(seen.begin(), seen.end(), name) == seen.end()) {
      std::printf("%s: required, but it did not run\n", name.c_str());
      ++failed;
    }
  }
  const bool good_team = bitlab::cpu::test::check_team();
  std::printf("threads in phases: %s\n", good_team ? "as one thread" : "WRONG");
  ++(good_team ? passed : failed);
  const bool good_sum = bitlab::cpu::test::check_sum();
  std::printf("sums in an order: %s\n", good_sum ? "as they are to be" : "WRONG");
  ++(good_sum ? passed : failed);
  std::printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
  return failed == 0 ? 0 : 1;
}
