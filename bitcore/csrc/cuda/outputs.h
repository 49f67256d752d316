// What is known of a call's outputs when a kernel is compiled. Code for others lies between and is jumped over, and
// instructions behind a jump come late, where a block runs them once.
#pragma once

#include <type_traits>

#include "linear.h"

namespace bitlab::cuda {

// The latter two: of one digit, without bias and zero points, eight of a token in 16 aligned bytes.
enum class Outputs { kAny, kBFloat16, kFloat16 };

// Whether eight outputs of a token always are 16 aligned bytes.
__host__ __device__ inline bool has_whole_eights(const Weight& weight) {
  return weight.n % 8 == 0 && reinterpret_cast<uintptr_t>(weight.y) % 16 == 0;
}

inline Outputs outputs_of(const Linear& linear, int digits) {
  bool plain = digits == 1 && linear.dtype != Dtype::kFloat32;
  for (int i = 0; i < linear.weight_count; ++i)
    plain &= linear.weights[i].bias == nullptr && linear.weights[i].zero_point == nullptr &&
             has_whole_eights(linear.weights[i]);
  if (!plain) return Outputs::kAny;
  return linear.dtype == Dtype::kBFloat16 ? Outputs::kBFloat16 : Outputs::kFloat16;
}

// Calls visit(outputs as a constant), which is kAny where kernels for each would be too many.
template <bool kEach, typename Visit>
auto visit_outputs(Outputs outputs, const Visit& visit) {
  using enum Outputs;
  if constexpr (kEach) {
    if (outputs == kBFloat16) return visit(std::integral_constant<Outputs, kBFloat16>());
    if (outputs == kFloat16) return visit(std::integral_constant<Outputs, kFloat16>());
  }
  return visit(std::integral_constant<Outputs, kAny>());
}

}  // namespace bitlab::cuda
