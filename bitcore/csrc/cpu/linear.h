// y = dequantize(quantize(x) @ weight.T) + bias on one of the kernels: what is computed in which order, and who
// computes what. Torch-free: the caller owns the memory and the threads.
//
//   1. quantize   every token once, into scratch                                   parallel over tokens
//   2. multiply   blocks of rows that stay in L2 x tiles of tokens that stay in L1  parallel over rows
//      and store  while a block's int32 sums are still in L1
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>

#include "float_formats.h"
#include "kernel.h"

namespace bitlab::cpu {

struct LinearArguments {
  const void* x;  // [m, k], rows x_stride elements apart
  Dtype dtype;    // of x and y
  int64_t m, n, k;
  int64_t x_stride;
  const uint8_t* weight;      // [n, row_bytes]
  const float* weight_scale;  // [1] or [n]
  int64_t weight_scale_step;  // 0 or 1
  const float* bias;          // [n] or null
  bool per_tensor;            // one activation scale for all tokens, not one for each
  void* y;                    // [m, n], contiguous
};

// Quantized activations of one chunk of tokens. Kept by a thread from call to call, so that a call allocates nothing
// but y.
class Scratch {
 public:
  struct Token {
    float scale;
    int32_t sum;
  };

  // Memory for `tokens` rows of `bytes` each, 64-byte aligned; false if there is none.
  bool reserve(int64_t tokens, int64_t bytes) {
    const size_t needed = static_cast<size_t>(tokens) * (static_cast<size_t>(bytes) + sizeof(Token));
    if (needed > capacity_) {
      const size_t rounded = (needed + kPlaneAlignment - 1) / kPlaneAlignment * kPlaneAlignment;
      memory_.reset(static_cast<int8_t*>(std::aligned_alloc(kPlaneAlignment, rounded)));
      capacity_ = memory_ ? rounded : 0;
    }
    tokens_ = reinterpret_cast<Token*>(memory_.get() + tokens * bytes);
    return memory_ != nullptr;
  }

  int8_t* activations() { return memory_.get(); }
  Token* tokens() { return tokens_; }

 private:
  struct Free {
    void operator()(int8_t* memory) const { std::free(memory); }
  };
  std::unique_ptr<int8_t, Free> memory_;
  size_t capacity_ = 0;
  Token* tokens_ = nullptr;
};

constexpr int64_t kRowBlock = 128;                      // rows multiplied before their sums are stored
constexpr int64_t kRowGroup = 4;                        // rows that a thread takes together
constexpr int64_t kMaxTokenTile = 8;                    // no kernel's token_tile is larger
constexpr int64_t kScratchBytes = int64_t{4} << 20;     // activations quantized at once
constexpr int64_t kProductsPerTask = int64_t{1} << 19;  // below this a second thread costs more than it brings
constexpr int64_t kActivationsPerTask = int64_t{1} << 14;

inline int64_t item_size(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

inline const void* token_at(const LinearArguments& a, int64_t token) {
  return static_cast<const char*>(a.x) + token * a.x_stride * item_size(a.dtype);
}

// The activation rule (absmax): m = max(abs(x)), q = rint(x * (1 / m * 127)), scale = m / 127, all float32. The
// reciprocal is rounded before it is multiplied, as PyTorch does in `127 / m`. A row with NaN or Inf gets q = 0 and
// scale = NaN, so that all its outputs are NaN and no other token's are.
inline Scratch::Token quantize_token(const Kernel& kernel, const LinearArguments& a, int64_t token,
                                     uint32_t absmax_bits, int8_t* x_q, int64_t plane) {
  if (absmax_bits >= 0x7f800000) {
    memset(x_q, 0, static_cast<size_t>(4 * plane));
    return {std::numeric_limits<float>::quiet_NaN(), 0};
  }
  const float largest = std::max(float_of(absmax_bits), 1e-5f);
  return {largest / 127.0f, kernel.quantize(token_at(a, token), a.dtype, a.k, 1.0f / largest * 127.0f, x_q, plane)};
}

inline void multiply_rows(const Kernel& kernel, const LinearArguments& a, Scratch& scratch, int64_t plane,
                          int64_t first_token, int64_t tokens, int64_t row_begin, int64_t row_end) {
  alignas(64) int32_t acc[kMaxTokenTile * kRowBlock];
  const int64_t row_bytes = (a.k + 3) / 4;
  for (int64_t row = row_begin; row < row_end; row += kRowBlock) {
    const int64_t rows = std::min(kRowBlock, row_end - row);
    for (int64_t t = 0; t < tokens; t += kernel.token_tile) {
      const int64_t tile = std::min(kernel.token_tile, tokens - t);
      kernel.matmul(scratch.activations() + t * 4 * plane, tile, plane, a.weight + row * row_bytes, rows, row_bytes,
                    acc, kRowBlock);
      for (int64_t i = 0; i < tile; ++i) {
        const Scratch::Token token = scratch.tokens()[t + i];
        char* y = static_cast<char*>(a.y) + ((first_token + t + i) * a.n + row) * item_size(a.dtype);
        kernel.store(acc + i * kRowBlock, rows, token.sum, token.scale, a.weight_scale + row * a.weight_scale_step,
                     a.weight_scale_step, a.bias == nullptr ? nullptr : a.bias + row, y, a.dtype);
      }
    }
  }
}

// parallel_for(count, grain, f) calls f(begin, end) over [0, count). Returns false when scratch memory cannot be had.
template <class ParallelFor>
bool linear(const Kernel& kernel, const LinearArguments& a, Scratch& scratch, const ParallelFor& parallel_for) {
  const int64_t plane = ((a.k + 3) / 4 + kPlaneAlignment - 1) / kPlaneAlignment * kPlaneAlignment;
  const int64_t chunk =
      std::min(a.m, std::max(kernel.token_tile, kScratchBytes / (4 * plane) / kernel.token_tile * kernel.token_tile));
  if (!scratch.reserve(chunk, 4 * plane)) return false;

  uint32_t tensor_absmax = 0;
  if (a.per_tensor) {
    for (int64_t t = 0; t < a.m; ++t)
      tensor_absmax = std::max(tensor_absmax, kernel.absmax_bits(token_at(a, t), a.dtype, a.k));
  }
  for (int64_t first = 0; first < a.m; first += chunk) {
    const int64_t tokens = std::min(chunk, a.m - first);
    parallel_for(tokens, std::max<int64_t>(1, kActivationsPerTask / a.k), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const uint32_t absmax = a.per_tensor ? tensor_absmax : kernel.absmax_bits(token_at(a, first + t), a.dtype, a.k);
        scratch.tokens()[t] =
            quantize_token(kernel, a, first + t, absmax, scratch.activations() + t * 4 * plane, plane);
      }
    });
    const int64_t groups = (a.n + kRowGroup - 1) / kRowGroup;
    parallel_for(
        groups, std::max<int64_t>(1, kProductsPerTask / (kRowGroup * a.k * tokens)), [&](int64_t begin, int64_t end) {
          multiply_rows(kernel, a, scratch, plane, first, tokens, begin * kRowGroup, std::min(a.n, end * kRowGroup));
        });
  }
  return true;
}

}  // namespace bitlab::cpu
