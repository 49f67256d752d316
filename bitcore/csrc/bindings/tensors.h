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

// Requires that these are the tensors of a weight with k input features, all of them where `is_here` says. Returns the
// distance of the scales of neighbouring rows.
template <typename IsHere>
int64_t checked_scale_stride(const IsHere& is_here, int64_t k, int64_t weights_per_byte, int64_t group_size,
                             const Tensor& packed, const Tensor& scale, const Tensor* zero_point, const Tensor* bias) {
  require(is_here(packed) && packed.scalar_type() == ScalarType::Byte && packed.dim() == 2 &&
              packed.size(1) == (k + weights_per_byte - 1) / weights_per_byte && packed.is_contiguous(),
          "weight_packed must be a contiguous uint8 tensor [out_features, bytes of in_features] on the device of x");
  const int64_t n = packed.size(0);
  const int64_t groups = group_size == 0 ? 0 : (k + group_size - 1) / group_size;
  const bool shaped = groups > 0 ? scale.dim() == 2 && (scale.size(0) == n || n == 0) && scale.size(1) == groups
                                 : scale.dim() == 1 && (scale.size(0) == 1 || scale.size(0) == n);
  require(
      is_here(scale) && scale.scalar_type() == ScalarType::Float && shaped && scale.is_contiguous(),
      "weight_scale must be a contiguous float32 tensor [1], [out_features] or [out_features, groups] on the device "
      "of x");
  require(zero_point == nullptr || (is_here(*zero_point) && zero_point->scalar_type() == ScalarType::Char &&
                                    zero_point->dim() == scale.dim() && zero_point->size(0) == scale.size(0) &&
                                    zero_point->numel() == scale.numel() && zero_point->is_contiguous()),
          "weight_zero_point must be a contiguous int8 tensor of weight_scale's shape on the device of x");
  require(bias == nullptr || (is_here(*bias) && is_floating(bias->scalar_type()) && bias->dim() == 1 &&
                              bias->size(0) == n && bias->is_contiguous()),
          "bias must be a contiguous floating-point tensor [out_features] on the device of x");
  return groups > 0 ? groups : scale.size(0) == 1 ? 0 : 1;
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
