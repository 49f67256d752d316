// What comes in front of a product: a residual sum or a gated activation, and an RMSNorm.
#pragma once

#include "linear.h"

namespace bitlab::cuda {

// What makes the values of a row out of x and `other`, each step rounded to the dtype as PyTorch's operators do.
enum class RowSource : int { kCopy, kAdd, kRelu2, kSilu, kGelu };  // x, x + other, activation(x) * other

constexpr int64_t kMostNormed = 32768;  // values of a row, which stay in registers

// For each row: values = source(x, other); y = values / sqrt(mean(values^2) + eps) * weight.
struct RowNorm {
  RowSource source;
  const void* x;       // [rows, n]
  const void* other;   // [rows, n], or null for kCopy
  void* values;        // [rows, n], or null
  const void* weight;  // [n], or null: y = values
  void* y;             // [rows, n]
  Dtype dtype;         // of all
  int64_t rows, n;
  float eps;
};

// cudaError_t.
int launch_row_norm(const RowNorm& norm, void* stream);

}  // namespace bitlab::cuda
