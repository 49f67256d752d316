// Linear layers whole, as the operator calls them.
#include <cstring>
#include <memory>
#include <vector>

#include "../../bitcore/csrc/cpu/linear.h"
#include "checks.h"

namespace bitlab::cpu::test {

// Whole calls of two weights: nothing outside of their buffers is touched, and every kernel gives the bits of portable.
bool check_linear(const Kernel& kernel, Dtype dtype) {
  const auto format = static_cast<Format>(between(0, 3));
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
  std::vector<Weight> weights;
  for (const int64_t n : rows) {
    for (const int64_t size : {n * sizes.bytes, 4 * n * groups, n * m * item_size(dtype), n * m * item_size(dtype)}) {
      buffers.push_back(std::make_unique<Guarded>(static_cast<size_t>(size)));
    }
    Guarded &packed = *buffers[buffers.size() - 4], &scale = *buffers[buffers.size() - 3];
    for (int64_t i = 0; i < n * sizes.bytes; ++i) packed.as<uint8_t>()[i] = random_byte(format, false);
    for (int64_t i = 0; i < n * groups; ++i) scale.as<float>()[i] = static_cast<float>(between(1, 1000)) / 333.0f;
    weights.push_back({packed.as<uint8_t>(), n, scale.as<float>(), groups, nullptr, nullptr, nullptr});
  }
  const Activations activations{x.as<char>(), dtype, m, sizes.k, x_stride, static_cast<Quantization>(between(0, 2))};
  const Layout layout{format, group_size};
  Scratch scratch;
  for (size_t run = 0; run < 2; ++run) {
    for (size_t i = 0; i < 2; ++i) weights[i].y = buffers[4 * i + 2 + run]->as<char>();
    Linear linear(run == 0 ? kernel : kPortable, layout, activations, weights.data(), 2, scratch);
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

}  // namespace bitlab::cpu::test
