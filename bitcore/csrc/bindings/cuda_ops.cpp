// The operators of cpu_ops.cpp on CUDA tensors: on the device of x, on its current stream, without synchronisation.
// What they allocate (y and the quantized activations) comes from PyTorch's allocator, so a call can be captured.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <string>

#include "../cuda/linear.h"
#include "cuda_row_norm.h"

namespace {

using namespace bitlab;

// What a layer's config says; made in bitcore/kernels/compiled.py.
struct Mode {
  explicit Mode(int64_t bits) : format(bits >> 8 & 3), quantization(bits >> 10 & 3), group_size(bits >> 16) {
    require(bits >= 0 && quantization < 3, "mode names no format or quantization of this build");
  }

  int64_t format, quantization, group_size;
};

cuda::Weight checked_weight(const cuda::Linear& linear, const Tensor& x, const Tensor& packed, const Tensor& scale,
                            const Tensor* zero_point, const Tensor* bias) {
  const auto is_here = [&x](const Tensor& tensor) {
    return tensor.is_cuda() && tensor.get_device_index() == x.get_device_index();
  };
  const int64_t scale_stride = checked_scale_stride(is_here, linear.k, cuda::weights_per_byte(linear.format),
                                                    linear.group_size, packed, scale, zero_point, bias);
  return {
      .packed = static_cast<const uint8_t*>(packed.const_data_ptr()),
      .n = packed.size(0),
      .scale = static_cast<const float*>(scale.const_data_ptr()),
      .scale_stride = scale_stride,
      .zero_point = zero_point == nullptr ? nullptr : static_cast<const int8_t*>(zero_point->const_data_ptr()),
      .bias = bias == nullptr ? nullptr : bias->const_data_ptr(),
      .bias_dtype = bias == nullptr ? cuda::Dtype::kFloat32 : dtype_of<cuda::Dtype>(bias->scalar_type()),
      .y = nullptr,
  };
}

// x and what the mode says; the weights are still missing.
cuda::Linear checked_linear(const Tensor& x, int64_t in_features, int64_t mode_bits) {
  const Mode mode(mode_bits);
  const auto format = static_cast<cuda::Format>(mode.format);
  const int64_t most = int64_t{1} << (format == cuda::Format::kInt8 ? 16 : format == cuda::Format::kInt4 ? 20 : 23);
  require(in_features >= 1 && in_features <= most, "in_features is too small or too large");
  require(is_floating(x.scalar_type()), "x must be float32, bfloat16 or float16");
  require(x.dim() >= 1 && x.size(x.dim() - 1) == in_features, "x must have in_features as its last size");
  cuda::Linear linear = {};
  linear.dtype = dtype_of<cuda::Dtype>(x.scalar_type());
  linear.m = x.numel() / in_features;
  linear.k = in_features;
  linear.quantization = static_cast<cuda::Quantization>(mode.quantization);
  linear.format = format;
  linear.group_size = mode.group_size;
  return linear;
}

// Runs `linear`, whose weights are complete but for y, and returns the outputs. With a norm of the rows of x, which are
// contiguous.
std::vector<Tensor> multiply(const Tensor& x, cuda::Linear& linear, const cuda::RowNorm* norm = nullptr) {
  const int index = x.get_device_index();
  const DeviceGuard guard(index);
  std::vector<Tensor> outputs;
  outputs.reserve(static_cast<size_t>(linear.weight_count));
  for (int i = 0; i < linear.weight_count; ++i) {
    outputs.push_back(empty_output(x, linear.weights[i].n, aoti_torch_device_type_cuda(), index));
    linear.weights[i].y = outputs.back().mutable_data_ptr();
  }
  int count = 0;  // of weights that have rows
  for (int i = 0; i < linear.weight_count; ++i)
    if (linear.weights[i].n > 0) linear.weights[count++] = linear.weights[i];
  linear.weight_count = count;
  if (linear.m == 0 || count == 0) return outputs;

  const std::optional<int64_t> stride = row_stride(x);
  const Tensor rows = stride ? x : torch::stable::contiguous(x);
  linear.x = rows.const_data_ptr();
  linear.x_stride = stride.value_or(linear.k);
  void* const stream = stream_of(index);
  const cuda::Device& device = device_at(index);
  std::optional<Tensor> workspace;
  const auto bytes = static_cast<int64_t>(norm == nullptr ? cuda::workspace_bytes(linear, device)
                                                          : cuda::workspace_bytes(linear, *norm, device));
  if (bytes > 0) {
    const int64_t one = 1;
    workspace = allocate(1, &bytes, &one, aoti_torch_dtype_uint8(), aoti_torch_device_type_cuda(), index);
  }
  void* const memory = workspace ? workspace->mutable_data_ptr() : nullptr;
  check_launch(
      norm == nullptr ? cuda::run(linear, device, memory, stream) : cuda::run(linear, *norm, device, memory, stream),
      stream);
  return outputs;
}

const Tensor* pointer_to(const std::optional<Tensor>& tensor) { return tensor ? &*tensor : nullptr; }

Tensor packed_linear(const Tensor& x, const Tensor& weight_packed, const Tensor& weight_scale,
                     const std::optional<Tensor>& weight_zero_point, const std::optional<Tensor>& bias,
                     int64_t in_features, int64_t mode) {
  cuda::Linear linear = checked_linear(x, in_features, mode);
  linear.weights[0] =
      checked_weight(linear, x, weight_packed, weight_scale, pointer_to(weight_zero_point), pointer_to(bias));
  linear.weight_count = 1;
  return multiply(x, linear)[0];
}

// Checked tensors of the weights `first` to `last` of lists. Lists of zero points and biases are empty or full.
void add_weights(cuda::Linear& linear, const Tensor& x, size_t first, size_t last, const std::vector<Tensor>& packed,
                 const std::vector<Tensor>& scale, const std::vector<Tensor>& zero_point,
                 const std::vector<Tensor>& bias) {
  const size_t count = packed.size();
  require(scale.size() == count && (zero_point.empty() || zero_point.size() == count) &&
              (bias.empty() || bias.size() == count),
          "the lists of weights, scales, zero points and biases must be equally long");
  for (size_t i = first; i < last; ++i)
    linear.weights[linear.weight_count++] =
        checked_weight(linear, x, packed[i], scale[i], zero_point.empty() ? nullptr : &zero_point[i],
                       bias.empty() ? nullptr : &bias[i]);
}

// Several weights that read the same x, which is quantized once.
std::vector<Tensor> packed_linear_group(const Tensor& x, const std::vector<Tensor>& weight_packed,
                                        const std::vector<Tensor>& weight_scale,
                                        const std::vector<Tensor>& weight_zero_point, const std::vector<Tensor>& bias,
                                        int64_t in_features, int64_t mode) {
  const size_t count = weight_packed.size();
  std::vector<Tensor> outputs;
  for (size_t first = 0; first < count; first += cuda::kMaxWeights) {
    cuda::Linear linear = checked_linear(x, in_features, mode);
    add_weights(linear, x, first, std::min(count, first + cuda::kMaxWeights), weight_packed, weight_scale,
                weight_zero_point, bias);
    for (Tensor& output : multiply(x, linear)) outputs.push_back(std::move(output));
  }
  return outputs;
}

// packed_linear_group of the rows that a RowNorm makes of x and `other`; source as in bitcore/ops/cuda_decoding.py.
// Where that is x + other, the sum comes behind the outputs.
std::vector<Tensor> normed_linear_group(const Tensor& x, const std::optional<Tensor>& other,
                                        const std::optional<Tensor>& norm_weight, double eps, int64_t source,
                                        const std::vector<Tensor>& weight_packed,
                                        const std::vector<Tensor>& weight_scale,
                                        const std::vector<Tensor>& weight_zero_point, const std::vector<Tensor>& bias,
                                        int64_t in_features, int64_t mode) {
  require(source >= 0 && source <= static_cast<int64_t>(cuda::RowSource::kGelu), "source must be 0 to 4");
  require(!weight_packed.empty() && weight_packed.size() <= cuda::kMaxWeights, "there must be 1 to 4 weights");
  for (const Tensor& packed : weight_packed) require(packed.numel() > 0, "weights must have rows");
  cuda::RowNorm norm =
      checked_row_norm(x, pointer_to(other), pointer_to(norm_weight), eps, static_cast<cuda::RowSource>(source));
  cuda::Linear linear = checked_linear(x, in_features, mode);
  add_weights(linear, x, 0, weight_packed.size(), weight_packed, weight_scale, weight_zero_point, bias);
  std::optional<Tensor> sum;
  if (norm.source == cuda::RowSource::kAdd) {
    sum = empty_output(x, norm.n, aoti_torch_device_type_cuda(), x.get_device_index());
    norm.values = sum->mutable_data_ptr();
  }
  std::vector<Tensor> outputs = multiply(x, linear, &norm);
  if (sum) outputs.push_back(std::move(*sum));
  return outputs;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bitlab, m) {
  m.def(
      "normed_linear_group(Tensor x, Tensor? other, Tensor? norm_weight, float eps, int source, Tensor[] "
      "weight_packed, "
      "Tensor[] weight_scale, Tensor[] weight_zero_point, Tensor[] bias, int in_features, int mode) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(bitlab, CUDA, m) {
  m.impl("normed_linear_group", TORCH_BOX(&normed_linear_group));
  m.impl("packed_linear", TORCH_BOX(&packed_linear));
  m.impl("packed_linear_group", TORCH_BOX(&packed_linear_group));
}
