// RowNorm of checked tensors.
#pragma once

#include "../cuda/row_norm.h"
#include "cuda_device.h"
#include "tensors.h"

namespace bitlab {

inline bool is_beside(const Tensor& tensor, const Tensor& first) {
  return tensor.is_cuda() && tensor.get_device_index() == first.get_device_index() &&
         tensor.scalar_type() == first.scalar_type();
}

// Of the rows x, without `values` and y. `other` and `weight` may be null.
inline cuda::RowNorm checked_row_norm(const Tensor& x, const Tensor* other, const Tensor* weight, double eps,
                                      cuda::RowSource source) {
  require(x.is_cuda() && is_floating(x.scalar_type()) && x.dim() >= 1 && x.is_contiguous(),
          "x must be a contiguous float32, bfloat16 or float16 CUDA tensor");
  const int64_t n = x.size(x.dim() - 1);
  require(n >= 1 && n <= cuda::kMostNormed, "x must have 1 to 32768 values a row");
  const int64_t rows = x.numel() / n;
  require(rows < int64_t{1} << 31, "x must have fewer than 2**31 rows");
  require((source == cuda::RowSource::kCopy) == (other == nullptr), "the source must have as many tensors as it needs");
  require(other == nullptr || (is_beside(*other, x) && other->is_contiguous() && other->numel() == x.numel() &&
                               other->dim() == x.dim() && other->size(other->dim() - 1) == n),
          "the second tensor must be contiguous and of x's shape, dtype and device");
  require(weight == nullptr || (is_beside(*weight, x) && weight->is_contiguous() && weight->numel() == n),
          "weight must be contiguous [values of a row] and of x's dtype and device");
  return {
      .source = source,
      .x = x.const_data_ptr(),
      .other = other == nullptr ? nullptr : other->const_data_ptr(),
      .values = nullptr,
      .weight = weight == nullptr ? nullptr : weight->const_data_ptr(),
      .y = nullptr,
      .dtype = dtype_of<cuda::Dtype>(x.scalar_type()),
      .rows = rows,
      .n = n,
      .eps = static_cast<float>(eps),
  };
}

}  // namespace bitlab
