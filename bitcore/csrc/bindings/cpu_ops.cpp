// The operators of the CPU kernels, registered through LibTorch's stable ABI: one build serves every Python and every
// torch >= 2.10. Arguments are checked here once more than in Python, so that no call can read outside its tensors.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "../cpu/dispatch.h"
#include "../cpu/factors.h"
#include "../cpu/linear.h"
#include "packed_weights.h"
#include "parallel.h"

namespace {

using namespace bitlab;

void check_x(const Tensor& x, int64_t in_features) {
  require(x.is_cpu() && is_floating(x.scalar_type()), "x must be a float32, bfloat16 or float16 CPU tensor");
  require(x.dim() >= 1 && x.size(x.dim() - 1) == in_features, "x must have in_features as its last size");
}

void multiply(const Tensor& x, int64_t in_features, const Mode& mode, const cpu::Layout& layout,
              const cpu::Weight* weights, int64_t weight_count) {
  const cpu::Kernel& kernel = kernel_of(mode);
  if (x.numel() == 0) return;
  const std::optional<int64_t> stride = row_stride(x);
  const Tensor rows = stride ? x : torch::stable::contiguous(x);
  const cpu::Activations activations{
      .x = rows.const_data_ptr(),
      .dtype = dtype_of<cpu::Dtype>(x.scalar_type()),
      .m = x.numel() / in_features,
      .k = in_features,
      .x_stride = stride.value_or(in_features),
      .quantization = static_cast<cpu::Quantization>(mode.quantization),
  };
  thread_local cpu::Scratch scratch;
  cpu::Linear linear(kernel, layout, activations, weights, weight_count, scratch);
  const bool done = linear.run(parallel_for);
  require(done, "out of memory for the quantized activations");
}

const Tensor* pointer_to(const std::optional<Tensor>& tensor) { return tensor ? &*tensor : nullptr; }

Tensor packed_linear(const Tensor& x, const Tensor& weight_packed, const Tensor& weight_scale,
                     const std::optional<Tensor>& weight_zero_point, const std::optional<Tensor>& bias,
                     int64_t in_features, int64_t mode_bits) {
  const Mode mode(mode_bits);
  const cpu::Layout layout = layout_of(mode, in_features);
  check_x(x, in_features);
  CheckedWeight checked(layout, in_features, weight_packed, weight_scale, pointer_to(weight_zero_point),
                        pointer_to(bias));
  Tensor y = empty_output(x, checked.weight.n, aoti_torch_device_type_cpu(), 0);
  checked.weight.y = y.mutable_data_ptr();
  multiply(x, in_features, mode, layout, &checked.weight, 1);
  return y;
}

// Several weights that read the same x, which is quantized once. Lists of zero points and biases are empty or full.
std::vector<Tensor> packed_linear_group(const Tensor& x, const std::vector<Tensor>& weight_packed,
                                        const std::vector<Tensor>& weight_scale,
                                        const std::vector<Tensor>& weight_zero_point, const std::vector<Tensor>& bias,
                                        int64_t in_features, int64_t mode_bits) {
  const Mode mode(mode_bits);
  const cpu::Layout layout = layout_of(mode, in_features);
  check_x(x, in_features);
  const size_t count = weight_packed.size();
  require(weight_scale.size() == count && (weight_zero_point.empty() || weight_zero_point.size() == count) &&
              (bias.empty() || bias.size() == count),
          "the lists of weights, scales, zero points and biases must be equally long");
  std::vector<CheckedWeight> checked;
  std::vector<cpu::Weight> weights;
  std::vector<Tensor> outputs;
  checked.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    checked.emplace_back(layout, in_features, weight_packed[i], weight_scale[i],
                         weight_zero_point.empty() ? nullptr : &weight_zero_point[i],
                         bias.empty() ? nullptr : &bias[i]);
    outputs.push_back(empty_output(x, checked[i].weight.n, aoti_torch_device_type_cpu(), 0));
    weights.push_back(checked[i].weight);
    weights[i].y = outputs[i].mutable_data_ptr();
  }
  multiply(x, in_features, mode, layout, weights.data(), static_cast<int64_t>(count));
  return outputs;
}

// Attention of the one position of q [batch, heads, 1, head_dim] to keys and values [batch, kv_heads, length,
// head_dim], all of whose features lie together. Returns [batch, heads, 1, head_dim].
Tensor attend_one(const Tensor& q, const Tensor& keys, const Tensor& values) {
  require(q.is_cpu() && is_floating(q.scalar_type()) && q.dim() == 4 && q.size(2) == 1 && q.size(3) >= 1 &&
              q.size(3) <= cpu::kMaxHeadDim && q.stride(3) == 1,
          "q must be a float32, bfloat16 or float16 CPU tensor [batch, heads, 1, 1 to 256]");
  const int64_t heads = q.size(1), head_dim = q.size(3);
  for (const Tensor* tensor : {&keys, &values}) {
    require(tensor->is_cpu() && tensor->scalar_type() == q.scalar_type() && tensor->dim() == 4 &&
                tensor->size(0) == q.size(0) && tensor->size(1) >= 1 && heads % tensor->size(1) == 0 &&
                tensor->size(1) == keys.size(1) && tensor->size(2) >= 1 && tensor->size(2) == keys.size(2) &&
                tensor->size(3) == head_dim && tensor->stride(3) == 1,
            "keys and values must be [batch, a divisor of heads, 1 or more, head_dim], as q");
  }
  Tensor y = empty_output(q, head_dim, aoti_torch_device_type_cpu(), 0);
  const auto dtype = dtype_of<cpu::Dtype>(q.scalar_type());
  const int64_t item = cpu::item_size(dtype), length = keys.size(2), group = heads / keys.size(1);
  const auto at = [item](const Tensor& tensor, int64_t batch, int64_t head) {
    return static_cast<const char*>(tensor.const_data_ptr()) +
           (batch * tensor.stride(0) + head * tensor.stride(1)) * item;
  };
  char* const outputs = static_cast<char*>(y.mutable_data_ptr());
  const cpu::Kernel& kernel = cpu::best_kernel();
  const auto attend_heads = [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> scores;
    scores.resize(static_cast<size_t>(cpu::kMaxHeads * length));
    for (int64_t next = begin; begin < end; begin = next) {  // heads of one group at a time: they share their keys
      next = std::min({end, begin + cpu::kMaxHeads, (begin / group + 1) * group});
      const int64_t batch = begin / heads, head = begin % heads;
      kernel.attend({.q = at(q, batch, head),
                     .keys = at(keys, batch, head / group),
                     .values = at(values, batch, head / group),
                     .heads = next - begin,
                     .head_dim = head_dim,
                     .length = length,
                     .q_stride = q.stride(1),
                     .key_stride = keys.stride(2),
                     .value_stride = values.stride(2),
                     .scale = cpu::score_factor(head_dim),
                     .scores = scores.data(),
                     .y = outputs + begin * head_dim * item},
                    dtype);
    }
  };
  constexpr int64_t kProductsPerThread = int64_t{1} << 17;
  const int64_t all = q.size(0) * heads, grain = std::max<int64_t>(1, kProductsPerThread / (length * head_dim));
  parallel_for(all, grain, attend_heads);
  return y;
}

// RMSNorm of the rows of x [..., n]: x / sqrt(mean(x * x) + eps) * weight. PyTorch sums the squares, so that the order
// of the sum, and with it every bit of the result, is that of its own RMSNorm.
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  require(x.is_cpu() && is_floating(x.scalar_type()) && x.dim() >= 1 && x.size(x.dim() - 1) >= 1 && x.is_contiguous(),
          "x must be a contiguous float32, bfloat16 or float16 CPU tensor [..., 1 or more]");
  const int64_t n = x.size(x.dim() - 1), rows = x.numel() / n;
  require(weight.is_cpu() && weight.scalar_type() == x.scalar_type() && weight.dim() == 1 && weight.size(0) == n &&
              weight.is_contiguous(),
          "weight must be contiguous and of x's dtype and last size");
  Tensor y = empty_output(x, n, aoti_torch_device_type_cpu(), 0);
  if (rows == 0) return y;
  const auto dtype = dtype_of<cpu::Dtype>(x.scalar_type());
  const int64_t row_bytes = n * cpu::item_size(dtype);
  const auto* const from = static_cast<const char*>(x.const_data_ptr());
  const cpu::Kernel& kernel = cpu::best_kernel();
  const int64_t grain = std::max<int64_t>(1, cpu::kActivationsPerTask / n);

  const int64_t sizes[] = {rows, n}, strides[] = {n, 1}, last = -1;
  Tensor squares = allocate(2, sizes, strides, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0);
  auto* const squared = static_cast<float*>(squares.mutable_data_ptr());
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      kernel.square(from + row * row_bytes, n, squared + row * n, dtype);
    }
  });
  const Tensor total = torch::stable::sum(squares, torch::headeronly::IntHeaderOnlyArrayRef(&last, 1));
  const auto* sums = static_cast<const float*>(total.const_data_ptr());
  auto* const to = static_cast<char*>(y.mutable_data_ptr());
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float factor = cpu::rms_factor(sums[row], n, static_cast<float>(eps));
      kernel.normalize(from + row * row_bytes, weight.const_data_ptr(), n, factor, to + row * row_bytes, dtype);
    }
  });
  return y;
}

// A step of decoding: turns q and k by the rotary embedding of their position, puts k and v into the cache behind
// `past` positions, and attends to all of them. q [batch, 1, heads * head_dim], k and v [batch, 1, kv_heads *
// head_dim], cos and sin [1, head_dim]; keys and values [batch, kv_heads, room, head_dim] are the cache. Returns
// [batch, heads, 1, head_dim].
Tensor attend_next(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos, const Tensor& sin, Tensor keys,
                   Tensor values, int64_t past) {
  const ScalarType type = q.scalar_type();
  require(q.is_cpu() && is_floating(type) && keys.dim() == 4 && values.dim() == 4, "q must be float, the cache 4-d");
  const int64_t batch = keys.size(0), kv_heads = keys.size(1), head_dim = keys.size(3);
  require(head_dim >= 2 && head_dim % 2 == 0 && head_dim <= cpu::kMaxHeadDim, "head_dim must be even, 2 to 256");
  require(past >= 0 && past < keys.size(2) && past < values.size(2), "the cache must have room");
  for (const Tensor* tensor : {&q, &k, &v}) {
    require(tensor->is_cpu() && tensor->scalar_type() == type && tensor->dim() == 3 && tensor->size(0) == batch &&
                tensor->size(1) == 1 && tensor->is_contiguous(),
            "q, k and v must be contiguous [batch, 1, features] of one dtype");
  }
  require(batch >= 1 && kv_heads >= 1 && k.size(2) == kv_heads * head_dim && v.size(2) == k.size(2) &&
              q.size(2) >= k.size(2) && q.size(2) % k.size(2) == 0,
          "q, k and v must have the features of the cache's heads");
  for (const Tensor* tensor : {&cos, &sin}) {
    require(tensor->is_cpu() && tensor->scalar_type() == type && tensor->numel() == head_dim && tensor->is_contiguous(),
            "cos and sin must be contiguous [1, head_dim] of q's dtype");
  }
  for (const Tensor* tensor : {&keys, &values}) {
    require(tensor->is_cpu() && tensor->scalar_type() == type && tensor->size(0) == batch &&
                tensor->size(1) == kv_heads && tensor->size(3) == head_dim && tensor->stride(3) == 1,
            "keys and values must be [batch, kv_heads, room, head_dim] of q's dtype");
  }
  const auto dtype = dtype_of<cpu::Dtype>(type);
  const int64_t item = cpu::item_size(dtype), head_bytes = head_dim * item, heads = q.size(2) / head_dim;
  const cpu::Kernel& kernel = cpu::best_kernel();
  const auto place = [&](const Tensor& cache, int64_t row) {
    return static_cast<char*>(const_cast<void*>(cache.const_data_ptr())) +
           (row / kv_heads * cache.stride(0) + row % kv_heads * cache.stride(1) + past * cache.stride(2)) * item;
  };
  for (int64_t row = 0; row < batch * kv_heads; ++row) {
    kernel.rotate(static_cast<const char*>(k.const_data_ptr()) + row * head_bytes, cos.const_data_ptr(),
                  sin.const_data_ptr(), head_dim, place(keys, row), dtype);
    memcpy(place(values, row), static_cast<const char*>(v.const_data_ptr()) + row * head_bytes,
           static_cast<size_t>(head_bytes));
  }
  const int64_t sizes[] = {batch, heads, 1, head_dim};
  const int64_t strides[] = {heads * head_dim, head_dim, head_dim, 1};
  int32_t torch_dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(q.get(), &torch_dtype));
  Tensor turned = allocate(4, sizes, strides, torch_dtype, aoti_torch_device_type_cpu(), 0);
  for (int64_t row = 0; row < batch * heads; ++row) {
    kernel.rotate(static_cast<const char*>(q.const_data_ptr()) + row * head_bytes, cos.const_data_ptr(),
                  sin.const_data_ptr(), head_dim, static_cast<char*>(turned.mutable_data_ptr()) + row * head_bytes,
                  dtype);
  }
  Tensor seen_keys = torch::stable::narrow(keys, 2, 0, past + 1),
         seen_values = torch::stable::narrow(values, 2, 0, past + 1);
  return attend_one(turned, seen_keys, seen_values);
}

}  // namespace

STABLE_TORCH_LIBRARY(bitlab, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def("attend_one(Tensor q, Tensor keys, Tensor values) -> Tensor");
  m.def(
      "attend_next(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor(a!) keys, Tensor(b!) values, int past) "
      "-> Tensor");
  m.def(
      "packed_linear(Tensor x, Tensor weight_packed, Tensor weight_scale, Tensor? weight_zero_point, Tensor? bias, "
      "int in_features, int mode) -> Tensor");
  m.def(
      "packed_linear_group(Tensor x, Tensor[] weight_packed, Tensor[] weight_scale, Tensor[] weight_zero_point, "
      "Tensor[] bias, int in_features, int mode) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(bitlab, CPU, m) {
  m.impl("packed_linear", TORCH_BOX(&packed_linear));
  m.impl("packed_linear_group", TORCH_BOX(&packed_linear_group));
  m.impl("attend_one", TORCH_BOX(&attend_one));
  m.impl("attend_next", TORCH_BOX(&attend_next));
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
}
