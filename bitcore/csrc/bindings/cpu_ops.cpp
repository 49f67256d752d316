// The operators of the CPU kernels, registered through LibTorch's stable ABI: one build serves every Python and every
// torch >= 2.10. Arguments are checked here once more than in Python, so that no call can read outside its tensors.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>
#include <vector>

#include "../cpu/dispatch.h"
#include "../cpu/linear.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
namespace cpu = bitlab::cpu;

// Plain strings: STD_TORCH_CHECK formats with streams, which crash in a library that links the C++ runtime statically.
// The Python side finds out which argument was what.
void require(bool condition, const char* message) {
  if (!condition) throw std::runtime_error(message);
}

bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half;
}

cpu::Dtype dtype_of(ScalarType type) {
  return type == ScalarType::Float      ? cpu::Dtype::kFloat32
         : type == ScalarType::BFloat16 ? cpu::Dtype::kBFloat16
                                        : cpu::Dtype::kFloat16;
}

// The distance between rows if x can be read as [M, K] where it lies, else nothing.
std::optional<int64_t> row_stride(const Tensor& x) {
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

// An uninitialized contiguous tensor with x's sizes but for the last, x's dtype, on the CPU. Through the C interface,
// because torch::stable::new_empty takes 0.8 us longer, a fifth of the call of a small layer.
Tensor empty_output(const Tensor& x, int64_t last_size) {
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
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dimensions, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// A float32 copy of a bfloat16 or float16 vector.
std::vector<float> as_float32(const Tensor& vector) {
  const auto* values = static_cast<const uint16_t*>(vector.const_data_ptr());
  const bool bfloat16 = vector.scalar_type() == ScalarType::BFloat16;
  std::vector<float> result(static_cast<size_t>(vector.numel()));
  for (size_t i = 0; i < result.size(); ++i)
    result[i] = bfloat16 ? cpu::from_bfloat16(values[i]) : cpu::from_float16(values[i]);
  return result;
}

// `mode` is one integer for two, because each costs 0.2 us a call: 2 * kernel + (1 if activations have one scale for
// the tensor).
Tensor ternary_linear(const Tensor& x, const Tensor& weight_packed, const Tensor& weight_scale,
                      const std::optional<Tensor>& bias, int64_t in_features, int64_t mode) {
  const ScalarType type = x.scalar_type();
  require(0 <= mode && mode < 2 * cpu::kernel_count(), "mode names no kernel of this build");
  const cpu::Kernel& kernel = cpu::kernel_at(static_cast<int>(mode / 2));
  require(cpu::missing_features(kernel) == 0, "this CPU lacks instructions that the kernel needs");
  require(x.is_cpu() && is_floating(type), "x must be a float32, bfloat16 or float16 CPU tensor");
  require(in_features >= 1 && in_features <= int64_t{1} << 23, "in_features must be 1 to 2**23");
  require(x.dim() >= 1 && x.size(x.dim() - 1) == in_features, "x must have in_features as its last size");
  require(weight_packed.is_cpu() && weight_packed.scalar_type() == ScalarType::Byte && weight_packed.dim() == 2 &&
              weight_packed.size(1) == (in_features + 3) / 4 && weight_packed.is_contiguous(),
          "weight_packed must be a contiguous uint8 CPU tensor [out_features, ceil(in_features / 4)]");
  const int64_t n = weight_packed.size(0);
  require(weight_scale.is_cpu() && weight_scale.scalar_type() == ScalarType::Float && weight_scale.dim() == 1 &&
              (weight_scale.size(0) == 1 || weight_scale.size(0) == n) && weight_scale.is_contiguous(),
          "weight_scale must be a contiguous float32 CPU tensor [1] or [out_features]");
  require(!bias || (bias->is_cpu() && is_floating(bias->scalar_type()) && bias->dim() == 1 && bias->size(0) == n &&
                    bias->is_contiguous()),
          "bias must be a contiguous floating-point CPU tensor [out_features]");

  Tensor y = empty_output(x, n);
  if (y.numel() == 0) return y;

  std::optional<int64_t> stride = row_stride(x);
  const Tensor rows = stride ? x : torch::stable::contiguous(x);
  const bool convert_bias = bias && bias->scalar_type() != ScalarType::Float;
  const std::vector<float> bias_float32 = convert_bias ? as_float32(*bias) : std::vector<float>();
  cpu::LinearArguments arguments{
      .x = rows.const_data_ptr(),
      .dtype = dtype_of(type),
      .m = x.numel() / in_features,
      .n = n,
      .k = in_features,
      .x_stride = stride.value_or(in_features),
      .weight = static_cast<const uint8_t*>(weight_packed.const_data_ptr()),
      .weight_scale = static_cast<const float*>(weight_scale.const_data_ptr()),
      .weight_scale_step = weight_scale.size(0) == 1 ? 0 : 1,
      .bias = convert_bias ? bias_float32.data()
              : bias       ? static_cast<const float*>(bias->const_data_ptr())
                           : nullptr,
      .per_tensor = mode % 2 == 1,
      .y = y.mutable_data_ptr(),
  };
  thread_local cpu::Scratch scratch;
  const bool done = cpu::linear(kernel, arguments, scratch, [](int64_t count, int64_t grain, const auto& work) {
    if (count <= grain) {
      work(0, count);
    } else {
      torch::stable::parallel_for(0, count, grain, work);
    }
  });
  require(done, "out of memory for the quantized activations");
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY(bitlab, m) {
  m.def(
      "ternary_linear(Tensor x, Tensor weight_packed, Tensor weight_scale, Tensor? bias, int in_features, "
      "int mode) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bitlab, CPU, m) { m.impl("ternary_linear", TORCH_BOX(&ternary_linear)); }
