// A row of the table of kernels: matmul of its own, and the loops that each compiles with its own flags. Included last.
#pragma once

#include "activations.h"
#include "attention.h"
#include "elementwise.h"
#include "outputs.h"
#include "transcode.h"
#include "weights.h"

namespace bitlab::cpu {
namespace {

constexpr Kernel whole_kernel(const char* name, uint64_t required, int int8_zero) {
  return {
      .name = name,
      .required = required,
      .int8_zero = int8_zero,
      .matmul = matmul,
      .base3_to_2bit = base3_to_2bit,
      .absmax_bits = absmax_bits,
      .quantize = quantize,
      .scale_sums = scale_sums,
      .write = write,
      .square = square,
      .normalize = normalize,
      .combine = combine,
      .rotate = rotate,
      .attend = attend,
      .magnitude_sum = magnitude_sum,
      .pack_ternary = pack_ternary,
  };
}

}  // namespace
}  // namespace bitlab::cpu
