// What a decoder does between its products, value by value, each result rounded to dtype as PyTorch's operators round
// it. Plain C++ in loops that compilers vectorize with the flags of the file that includes this one; in an anonymous
// namespace, so that each file has its own copy.
#pragma once

#include "float_formats.h"
#include "kernel.h"

namespace bitlab::cpu {
namespace {

template <Dtype dtype>
inline float rounded(float value) {
  if constexpr (dtype == Dtype::kBFloat16) return from_bfloat16(to_bfloat16(value));
  if constexpr (dtype == Dtype::kFloat16) return from_float16(to_float16(value));
  return value;
}

template <Dtype dtype>
void combine_of(Combination combination, const void* __restrict x, int64_t n, void* __restrict y) {
  switch (combination) {
    case Combination::kAdd:
      for (int64_t i = 0; i < n; ++i) store<dtype>(y, i, load<dtype>(y, i) + load<dtype>(x, i));
      break;
    case Combination::kMultiply:
      for (int64_t i = 0; i < n; ++i) store<dtype>(y, i, load<dtype>(y, i) * load<dtype>(x, i));
      break;
    default:
      for (int64_t i = 0; i < n; ++i) {
        const float value = load<dtype>(y, i), positive = value < 0.0f ? 0.0f : value;  // NaN stays
        store<dtype>(y, i, rounded<dtype>(positive * positive) * load<dtype>(x, i));
      }
  }
}

void combine(Combination combination, const void* x, int64_t n, void* y, Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32: return combine_of<Dtype::kFloat32>(combination, x, n, y);
    case Dtype::kBFloat16: return combine_of<Dtype::kBFloat16>(combination, x, n, y);
    default: return combine_of<Dtype::kFloat16>(combination, x, n, y);
  }
}

}  // namespace
}  // namespace bitlab::cpu
