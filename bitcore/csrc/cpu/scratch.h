// The memory of one call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "kernel.h"

namespace bitlab::cpu {

// Quantized activations of one chunk of tokens. Kept by a thread from call to call, so that a call allocates nothing
// but y.
class Scratch {
 public:
  // Memory for `tokens` tokens of `vector_bytes` int8 and `sums` int32 each; false if there is none.
  bool reserve(int64_t tokens, int64_t vector_bytes, int64_t sums) {
    const int64_t vectors = tokens * vector_bytes + kReadAhead;
    const auto needed = static_cast<size_t>(vectors + tokens * (sums + 1) * int64_t{4});
    if (needed > capacity_) {
      const size_t rounded = (needed + kPlaneAlignment - 1) / kPlaneAlignment * kPlaneAlignment;
      memory_.reset(static_cast<int8_t*>(std::aligned_alloc(kPlaneAlignment, rounded)));
      capacity_ = memory_ ? rounded : 0;
    }
    vector_bytes_ = vector_bytes;
    sums_per_token_ = sums;
    sums_ = reinterpret_cast<int32_t*>(memory_.get() + vectors);
    scales_ = reinterpret_cast<float*>(sums_ + tokens * sums);
    return memory_ != nullptr;
  }

  int8_t* vectors(int64_t token) { return memory_.get() + token * vector_bytes_; }
  int32_t* sums(int64_t token) { return sums_ + token * sums_per_token_; }  // [groups, digits]
  float& scale(int64_t token) { return scales_[token]; }

 private:
  struct Free {
    void operator()(int8_t* memory) const { std::free(memory); }
  };
  std::unique_ptr<int8_t, Free> memory_;
  size_t capacity_ = 0;
  int64_t vector_bytes_ = 0, sums_per_token_ = 0;
  int32_t* sums_ = nullptr;
  float* scales_ = nullptr;
};

}  // namespace bitlab::cpu
