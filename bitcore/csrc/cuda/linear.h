// The interface of the CUDA kernels: raw pointers, sizes and a stream; no torch, no allocation, no synchronisation.
//
// A call quantizes x [M, K] and multiplies it with up to kMaxWeights packed weights [N, K] that read the same x. All
// kernels use the tensor cores: a weight tile is decoded from its packed bytes in registers, where the instruction
// expects its left operand, so weights cross memory packed and shared memory never. The order of K is free as long as
// weights and activations agree, so the activations are written in the order in which codes come out of the bytes
// (fragments.cuh).
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace bitlab::cuda {

enum class Dtype : int { kFloat32, kBFloat16, kFloat16 };
enum class Format : int { k2Bit, kBase3, kInt4, kInt8 };
enum class Quantization : int { kPerToken, kPerTensor, kNone };

constexpr int weights_per_byte(Format format) {
  return format == Format::k2Bit ? 4 : format == Format::kBase3 ? 5 : format == Format::kInt4 ? 2 : 1;
}
constexpr int code_of_zero(Format format) { return format == Format::kInt4 ? 8 : format == Format::kInt8 ? 128 : 1; }

constexpr int kMaxWeights = 4;   // of one call: q, k, v and one to spare
constexpr int kFloatDigits = 3;  // int8 vectors of a token of floating-point activations

struct Weight {
  const uint8_t* packed;  // [n, row_bytes]
  int64_t n;
  const float* scale;        // [n] at scale_stride; groups are neighbours
  int64_t scale_stride;      // 0 for one scale for all rows
  const int8_t* zero_point;  // as scale, or null for 0
  const void* bias;          // [n] of bias_dtype, or null
  Dtype bias_dtype;
  void* y;  // [m, n] of x's dtype
};

struct Linear {
  const void* x;  // [m, k], rows x_stride elements apart
  Dtype dtype;
  int64_t m, k, x_stride;
  Quantization quantization;
  Format format;
  int64_t group_size;  // 0: one scale a row or tensor; else GROUP_MULTIPLES in cuda.py says which sizes there are
  Weight weights[kMaxWeights];
  int weight_count;
};

inline int64_t rows_of_all(const Linear& linear) {
  int64_t rows = 0;
  for (int i = 0; i < linear.weight_count; ++i) rows += linear.weights[i].n;
  return rows;
}

// What a device can do, asked once per device by the caller.
struct Device {
  int compute_capability;
  int multiprocessors;
  int shared_memory;  // bytes that a block may ask for
};

// Bytes of workspace that `run` needs, 256-byte aligned.
size_t workspace_bytes(const Linear& linear, const Device& device);

// Launches the call on `stream` of the current device. Returns a cudaError_t, 0 if all launches were accepted.
int run(const Linear& linear, const Device& device, void* workspace, void* stream);

// The same of the rows that `norm` (row_norm.h) makes of linear.x; its x, y, n, rows and dtype are those of `linear`.
struct RowNorm;
size_t workspace_bytes(const Linear& linear, const RowNorm& norm, const Device& device);
int run(const Linear& linear, const RowNorm& norm, const Device& device, void* workspace, void* stream);

}  // namespace bitlab::cuda
