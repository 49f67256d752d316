#include <cmath>
#include <numeric>
#include <vector>

#include "../../bitcore/csrc/cpu/sum_order.h"
#include "checks.h"
#include "guarded.h"

namespace bitlab::cpu::test {

bool check_sum() {
  const auto in_turn = [](const float* x, int64_t n) { return std::accumulate(x, x + n, 0.0f); };
  for (int trial = 0; trial < 100; ++trial) {
    const int64_t n = trial < 40 ? trial + 1 : between(1, 20000);
    std::vector<float> x(static_cast<size_t>(n));
    for (float& value : x) value = static_cast<float>(between(0, 1000)) * 0.37f;
    const double exact = std::accumulate(x.begin(), x.end(), 0.0);
    for (const int lanes : {4, 8, 16}) {
      const auto sum = [lanes](const float* values, int64_t size) { return sum_in_order(values, size, lanes); };
      if (std::abs(static_cast<double>(sum(x.data(), n)) - exact) > 1e-6 * exact) return false;
      if (const int found = lanes_of_order(n, sum); found != lanes && (n > 200 || found == 0)) return false;
    }
    if (n > 200 && lanes_of_order(n, in_turn) != 0) return false;
  }
  return true;
}

}  // namespace bitlab::cpu::test
