// The operators of cpu_ops.cpp on CUDA tensors: on the device of x, on its current stream, without synchronisation.
// What they allocate (y and the quantized activations) comes from PyTorch's allocator, so a call can be captured.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <string>

#include "../cuda/linear.h"
#include "tensors.h"

namespace {

using namespace bitlab;

// What a layer's config says; made in bitcore/kernels/compiled.py.
struct Mode {
  explicit Mode(int64_t bits) : format(bits >> 8 & 3), quantization(bits >> 10 & 3), group_size(bits >> 16) {
    require(bits >= 0 && format < 3 && quantization < 3, "mode names no format or quantization of this build");
  }

  int64_t format, quantization, group_size;
};

void check(int error, const char* what) {
  if (error == cudaSuccess) return;
  const auto code = static_cast<cudaError_t>(error);
  cudaGetLastError();  // or the next call would report it again
  const char* remedy =
      code == cudaErrorNoKernelImageForDevice || code == cudaErrorInvalidDeviceFunction
          ? "; this build has no kernels for this GPU: run `python build_extensions.py` on this machine"
          : "";
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(code) + remedy);
}

// The device of x is the current one as long as this lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
    moved_ = device != before_;
  }
  ~DeviceGuard() {
    if (moved_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool moved_ = false;
};

const cuda::Device& device_at(int index) {
  thread_local std::vector<cuda::Device> devices;
  if (devices.size() <= static_cast<size_t>(index)) devices.resize(static_cast<size_t>(index) + 1);
  cuda::Device& device = devices[static_cast<size_t>(index)];
  if (device.compute_capability == 0) {
    int major, minor;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index), "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, index),
          "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&device.shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
          "cudaDeviceGetAttribute");
    device.compute_capability = 10 * major + minor;
  }
  return device;
}

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
  const int64_t most = int64_t{1} << (format == cuda::Format::kInt4 ? 20 : 23);
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

bool is_debugging() {
  static const bool wanted = [] {
    const char* value = std::getenv("BITLAB_DEBUG");
    return value != nullptr && std::string(value) == "1";
  }();
  return wanted;
}

// Runs `linear`, whose weights are complete but for y, and returns the outputs.
std::vector<Tensor> multiply(const Tensor& x, cuda::Linear& linear) {
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
  void* stream;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
  const cuda::Device& device = device_at(index);
  std::optional<Tensor> workspace;
  const auto bytes = static_cast<int64_t>(cuda::workspace_bytes(linear, device));
  if (bytes > 0) {
    const int64_t one = 1;
    workspace = allocate(1, &bytes, &one, aoti_torch_dtype_uint8(), aoti_torch_device_type_cuda(), index);
  }
  check(cuda::run(linear, device, workspace ? workspace->mutable_data_ptr() : nullptr, stream), "launching a kernel");
  if (is_debugging()) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "cudaStreamIsCapturing");
    if (status == cudaStreamCaptureStatusNone)
      check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "running a kernel");
  }
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

// Several weights that read the same x, which is quantized once. Lists of zero points and biases are empty or full.
std::vector<Tensor> packed_linear_group(const Tensor& x, const std::vector<Tensor>& weight_packed,
                                        const std::vector<Tensor>& weight_scale,
                                        const std::vector<Tensor>& weight_zero_point, const std::vector<Tensor>& bias,
                                        int64_t in_features, int64_t mode) {
  const size_t count = weight_packed.size();
  require(weight_scale.size() == count && (weight_zero_point.empty() || weight_zero_point.size() == count) &&
              (bias.empty() || bias.size() == count),
          "the lists of weights, scales, zero points and biases must be equally long");
  std::vector<Tensor> outputs;
  for (size_t first = 0; first < count; first += cuda::kMaxWeights) {
    cuda::Linear linear = checked_linear(x, in_features, mode);
    const size_t last = std::min(count, first + cuda::kMaxWeights);
    for (size_t i = first; i < last; ++i)
      linear.weights[linear.weight_count++] = checked_weight(
          linear, x, weight_packed[i], weight_scale[i], weight_zero_point.empty() ? nullptr : &weight_zero_point[i],
          bias.empty() ? nullptr : &bias[i]);
    for (Tensor& output : multiply(x, linear)) outputs.push_back(std::move(output));
  }
  return outputs;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bitlab, CUDA, m) {
  m.impl("packed_linear", TORCH_BOX(&packed_linear));
  m.impl("packed_linear_group", TORCH_BOX(&packed_linear_group));
}
