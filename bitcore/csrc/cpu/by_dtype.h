// Three functions of the kernel table, from the templates absmax_bits_of, quantize_of and store_of of the file that
// includes this one after them. In an anonymous namespace, so that each file has its own, with its own flags.
#pragma once

#include "kernel.h"

namespace bitlab::cpu {
namespace {

uint32_t absmax_bits(const void* x, Dtype dtype, int64_t k) {
  switch (dtype) {
    case Dtype::kFloat32: return absmax_bits_of<Dtype::kFloat32>(x, k);
    case Dtype::kBFloat16: return absmax_bits_of<Dtype::kBFloat16>(x, k);
    default: return absmax_bits_of<Dtype::kFloat16>(x, k);
  }
}

int32_t quantize(const void* x, Dtype dtype, int64_t k, float inverse_scale, int8_t* x_q, int64_t plane) {
  switch (dtype) {
    case Dtype::kFloat32: return quantize_of<Dtype::kFloat32>(x, k, inverse_scale, x_q, plane);
    case Dtype::kBFloat16: return quantize_of<Dtype::kBFloat16>(x, k, inverse_scale, x_q, plane);
    default: return quantize_of<Dtype::kFloat16>(x, k, inverse_scale, x_q, plane);
  }
}

void store(const int32_t* acc, int64_t n, int32_t x_sum, float x_scale, const float* w_scale, int64_t w_scale_step,
           const float* bias, void* y, Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32: return store_of<Dtype::kFloat32>(acc, n, x_sum, x_scale, w_scale, w_scale_step, bias, y);
    case Dtype::kBFloat16: return store_of<Dtype::kBFloat16>(acc, n, x_sum, x_scale, w_scale, w_scale_step, bias, y);
    default: return store_of<Dtype::kFloat16>(acc, n, x_sum, x_scale, w_scale, w_scale_step, bias, y);
  }
}

}  // namespace
}  // namespace bitlab::cpu
