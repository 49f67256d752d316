// The operators of a decoding step on CUDA tensors, between its products; see row_norm.h and attention.h in csrc/cuda.
// They run on the device of their first tensor, on its current stream, without synchronisation, and can be captured.
#include <torch/csrc/stable/library.h>

#include "../cuda/attention.h"
#include "cuda_row_norm.h"

namespace {

using namespace bitlab;

Tensor normed(const Tensor& x, cuda::RowNorm norm) {
  const int index = x.get_device_index();
  const DeviceGuard guard(index);
  Tensor y = empty_output(x, norm.n, aoti_torch_device_type_cuda(), index);
  norm.y = y.mutable_data_ptr();
  void* const stream = stream_of(index);
  if (norm.rows > 0) check_launch(cuda::launch_row_norm(norm, stream), stream);
  return y;
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  return normed(x, checked_row_norm(x, nullptr, &weight, eps, cuda::RowSource::kCopy));
}

// (x + delta, its RMSNorm).
std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& weight, double eps) {
  cuda::RowNorm norm = checked_row_norm(x, &delta, &weight, eps, cuda::RowSource::kAdd);
  Tensor sum = empty_output(x, norm.n, aoti_torch_device_type_cuda(), x.get_device_index());
  norm.values = sum.mutable_data_ptr();
  Tensor y = normed(x, norm);
  return {std::move(sum), std::move(y)};
}

// activation(gate) * up, and its RMSNorm where there is a weight. Activations as in bitcore/ops/cuda_decoding.py.
Tensor gated_activation(const Tensor& gate, const Tensor& up, const std::optional<Tensor>& weight, double eps,
                        int64_t activation) {
  require(activation >= 0 && activation < 3, "activation must be 0, 1 or 2");
  const auto source = static_cast<cuda::RowSource>(static_cast<int64_t>(cuda::RowSource::kRelu2) + activation);
  return normed(gate, checked_row_norm(gate, &up, weight ? &*weight : nullptr, eps, source));
}

// Attention of one position to a cache [batch, kv_heads, room, head_dim], which it is written to at `position` [1].
Tensor attend_at(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos, const Tensor& sin, Tensor keys,
                 Tensor values, const Tensor& position, Tensor arrivals) {
  const ScalarType type = q.scalar_type();
  require(q.is_cuda() && (type == ScalarType::BFloat16 || type == ScalarType::Half), "q must be 16-bit floats on CUDA");
  require(keys.dim() == 4 && values.dim() == 4, "keys and values must be [batch, kv_heads, room, head_dim]");
  const int64_t batch = keys.size(0), kv_heads = keys.size(1), room = keys.size(2), head_dim = keys.size(3);
  require(head_dim >= 1 && head_dim <= cuda::kMostHeadDim && head_dim % cuda::kHeadDimMultiple == 0,
          "head_dim must be a multiple of 16 up to 256");
  for (const Tensor* tensor : {&q, &k, &v})
    require(is_beside(*tensor, q) && tensor->dim() == 3 && tensor->size(0) == batch && tensor->size(1) == 1 &&
                tensor->is_contiguous() && reinterpret_cast<uintptr_t>(tensor->const_data_ptr()) % 16 == 0,
            "q, k and v must be contiguous [batch, 1, features] of one dtype and device");
  require(batch >= 1 && kv_heads >= 1 && k.size(2) == kv_heads * head_dim && v.size(2) == k.size(2) &&
              q.size(2) >= k.size(2) && q.size(2) % k.size(2) == 0,
          "q, k and v must have the features of the cache's heads");
  const int64_t heads = q.size(2) / head_dim;
  require(batch * heads <= 65535, "batch times heads must be at most 65535");
  for (const Tensor* tensor : {&cos, &sin})
    require(is_beside(*tensor, q) && tensor->numel() == head_dim && tensor->is_contiguous() &&
                reinterpret_cast<uintptr_t>(tensor->const_data_ptr()) % 16 == 0,
            "cos and sin must be contiguous [1, head_dim] of q's dtype and device");
  for (const Tensor* tensor : {&keys, &values})
    require(is_beside(*tensor, q) && tensor->size(0) == batch && tensor->size(1) == kv_heads &&
                tensor->size(2) == room && tensor->size(3) == head_dim && tensor->is_contiguous() && room >= 1 &&
                reinterpret_cast<uintptr_t>(tensor->const_data_ptr()) % 16 == 0,
            "keys and values must be contiguous [batch, kv_heads, room, head_dim] of q's dtype and device");
  const auto is_here = [&q](const Tensor& tensor) {
    return tensor.is_cuda() && tensor.get_device_index() == q.get_device_index();
  };
  require(is_here(position) && position.scalar_type() == ScalarType::Long && position.numel() == 1,
          "position must be int64 [1] on q's device");
  require(is_here(arrivals) && arrivals.scalar_type() == ScalarType::Int && arrivals.numel() >= batch * heads &&
              arrivals.is_contiguous(),
          "arrivals must be int32 [batch * heads] on q's device");

  const int index = q.get_device_index();
  const DeviceGuard guard(index);
  Tensor y = empty_output(q, q.size(2), aoti_torch_device_type_cuda(), index);
  cuda::Attention attention = {
      .q = q.const_data_ptr(),
      .k = k.const_data_ptr(),
      .v = v.const_data_ptr(),
      .cos = cos.const_data_ptr(),
      .sin = sin.const_data_ptr(),
      .keys = keys.mutable_data_ptr(),
      .values = values.mutable_data_ptr(),
      .position = static_cast<const int64_t*>(position.const_data_ptr()),
      .y = y.mutable_data_ptr(),
      .partial = nullptr,
      .arrivals = static_cast<int32_t*>(arrivals.mutable_data_ptr()),
      .dtype = dtype_of<cuda::Dtype>(type),
      .batch = static_cast<int>(batch),
      .heads = static_cast<int>(heads),
      .kv_heads = static_cast<int>(kv_heads),
      .head_dim = static_cast<int>(head_dim),
      .room = room,
      .splits = 1,
  };
  attention.splits = cuda::attention_splits(attention, device_at(index));
  const int64_t floats = cuda::attention_workspace_floats(attention), one = 1;
  std::optional<Tensor> workspace;
  if (floats > 0) {
    workspace = allocate(1, &floats, &one, aoti_torch_dtype_float32(), aoti_torch_device_type_cuda(), index);
    attention.partial = static_cast<float*>(workspace->mutable_data_ptr());
  }
  void* const stream = stream_of(index);
  check_launch(cuda::launch_attention(attention, stream), stream);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bitlab, m) {
  m.def("add_rms_norm(Tensor x, Tensor delta, Tensor weight, float eps) -> (Tensor, Tensor)");
  m.def("gated_activation(Tensor gate, Tensor up, Tensor? weight, float eps, int activation) -> Tensor");
  m.def(
      "attend_at(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor(a!) keys, Tensor(b!) values, "
      "Tensor position, Tensor(c!) arrivals) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bitlab, CUDA, m) {
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm));
  m.impl("gated_activation", TORCH_BOX(&gated_activation));
  m.impl("attend_at", TORCH_BOX(&attend_at));
}
