// Memory that ends at a guard page, and random values of any dtype in it.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <random>

#include "../../bitcore/csrc/cpu/float_formats.h"
#include "../../bitcore/csrc/cpu/kernel.h"

namespace bitlab::cpu::test {

// Memory whose last byte lies before a page that cannot be read or written. 64-byte aligned if the size is a multiple
// of 64.
class Guarded {
 public:
  explicit Guarded(size_t size) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = (size + page - 1) / page * page + page;
    base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_ + mapped_ - page, page, PROT_NONE);
    data_ = base_ + mapped_ - page - size;
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }

 private:
  char* base_;
  char* data_;
  size_t mapped_;
};

inline std::mt19937 random_bits(std::random_device{}());

inline int64_t between(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_bits);
}

inline float get(const char* x, Dtype dtype, int64_t i) {
  if (dtype == Dtype::kFloat32) return reinterpret_cast<const float*>(x)[i];
  const uint16_t half = reinterpret_cast<const uint16_t*>(x)[i];
  return dtype == Dtype::kBFloat16 ? from_bfloat16(half) : from_float16(half);
}

inline void put(char* x, Dtype dtype, int64_t i, float value) {
  if (dtype == Dtype::kFloat32) {
    reinterpret_cast<float*>(x)[i] = value;
  } else {
    reinterpret_cast<uint16_t*>(x)[i] = dtype == Dtype::kBFloat16 ? to_bfloat16(value) : to_float16(value);
  }
}

inline float rounded(float value, Dtype dtype) {
  char bytes[4];
  put(bytes, dtype, 0, value);
  return get(bytes, dtype, 0);
}

}  // namespace bitlab::cpu::test
