// What test_kernels.cpp asks of every kernel: true where it equals a scalar definition on fresh random data. All memory
// ends at guard pages.
#pragma once

#include "codes.h"

namespace bitlab::cpu::test {

bool check_quantize(const Kernel& kernel, const Sizes& sizes, Dtype dtype);
bool check_matmul(const Kernel& kernel, const Sizes& sizes, int64_t m, int64_t n);
bool check_base3_to_2bit(const Kernel& kernel, int64_t bytes);
bool check_outputs(const Kernel& kernel, Dtype dtype, int64_t n);
bool check_elementwise(const Kernel& kernel, Dtype dtype);
bool check_attend(const Kernel& kernel, Dtype dtype);
bool check_linear(const Kernel& kernel, Dtype dtype);

// Phases on several threads give what one thread gives, and an exception ends them all.
bool check_team();

// Sums in PyTorch's order are sums, and an order is taken for no other.
bool check_sum();

}  // namespace bitlab::cpu::test
