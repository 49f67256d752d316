// What the operators ask of PyTorch's tensors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <vector>

#include "../cpu/float_formats.h"

namespace bitlab {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Plain strings: STD_TORCH_CHECK formats with streams, which crash in a library that links the C++ runtime statically.
// The Python side finds out which argument was what.
inline void require(bool condition, const char* message) {
  if (!condition) throw std::runtime_error(message);
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half;
}

template <typename Dtype>
Dtype dtype_of(ScalarType type) {
  return type == ScalarType::Float      ? Dtype::kFloat32
         : type == ScalarType::BFloat16 ? Dtype::kBFloat16
                                        : Dtype::kFloat16;
}

// The distance between rows if x can be read as [M, K] where it lies, else nothing.
inline std::optional<int64_t> row_stride(const Tensor& x) {
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  const int64_t last = x.dim() - 1;
  if (strides[last] != 1 && sizes[last] != 1) return std::nullopt;
  if (last == 0) return sizes[0];
  int64_t stride = 0, rows = 1;
  for (int64_t d = last - 1; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    if (rows == 1) {
      stride = strides[d];
    } else if (strides[d] != stride * rows) {
      return std::nullopt;
    }
    rows *= sizes[d];
  }
  return stride;
}

// An uninitialized tensor. A failure is told in words by which the Python side knows it.
inline Tensor allocate(int64_t dimensions, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                       int32_t device_type, int32_t device_index) {
  AtenTensorHandle handle;
  require(aoti_torch_empty_strided(dimensions, sizes, strides, dtype, device_type, device_index, &handle) == 0,
          "out of memory");
  return Tensor(handle);
}

// An uninitialized contiguous tensor with x's sizes but for the last, x's dtype, on the given device. Through the C
// interface, because torch::stable::new_empty takes 0.8 us longer, a fifth of the call of a small layer.
inline Tensor empty_output(const Tensor& x, int64_t last_size, int32_t device_type, int32_t device_index) {
  constexpr int64_t kMaxDimensions = 64;  // as many as PyTorch allows
  int64_t sizes[kMaxDimensions], strides[kMaxDimensions];
  const int64_t dimensions = x.dim();
  require(dimensions <= kMaxDimensions, "x must have at most 64 dimensions");
  const auto x_sizes = x.sizes();
  for (int64_t d = dimensions - 1, stride = 1; d >= 0; --d) {
    sizes[d] = d == dimensions - 1 ? last_size : x_sizes[d];
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  }
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &dtype));
  return allocate(dimensions, sizes, strides, dtype, device_type, device_index);
}

// A float32 copy of a bfloat16 or float16 vector.
inline std::vector<float> as_float32(const Tensor& vector) {
  const auto* values = static_cast<const uint16_t*>(vector.const_data_ptr());
  const bool bfloat16 = vector.scalar_type() == ScalarType::BFloat16;
  std::vector<float> result(static_cast<size_t>(vector.numel()));
  for (size_t i = 0; i < result.size(); ++i)
    result[i] = bfloat16 ? cpu::from_bfloat16(values[i]) : cpu::from_float16(values[i]);
  return result;
}

}  // namespace bitlab
