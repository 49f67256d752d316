// The operators of training on the CPU: what forward and backward pass need besides packed_linear, one pass each.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../cpu/dispatch.h"
#include "../cpu/training.h"
#include "parallel.h"
#include "tensors.h"

namespace {

using namespace bitlab;

const cpu::Kernel& kernel_of(int64_t index) {
  require(index >= 0 && index < cpu::kernel_count(), "kernel is no index of this build's kernels");
  const cpu::Kernel& kernel = cpu::kernel_at(static_cast<int>(index));
  require(cpu::missing_features(kernel) == 0, "this CPU lacks instructions that the kernel needs");
  return kernel;
}

cpu::Format ternary_format(int64_t format) {
  require(format == 0 || format == 1, "storage_format must be 0 (2bit) or 1 (base3)");
  return static_cast<cpu::Format>(format);
}

Tensor allocate_cpu(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  int64_t strides[2] = {1, 1};
  if (sizes.size() == 2) strides[0] = std::max<int64_t>(sizes.begin()[1], 1);
  const int32_t code = dtype == ScalarType::Float      ? aoti_torch_dtype_float32()
                       : dtype == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                       : dtype == ScalarType::Half     ? aoti_torch_dtype_float16()
                       : dtype == ScalarType::Char     ? aoti_torch_dtype_int8()
                                                       : aoti_torch_dtype_uint8();
  return allocate(static_cast<int64_t>(sizes.size()), sizes.begin(), strides, code, aoti_torch_device_type_cpu(), 0);
}

std::tuple<Tensor, Tensor> quantize_ternary(const Tensor& weight, bool per_channel, bool absmean,
                                            double threshold_factor, int64_t storage_format, int64_t kernel_index) {
  const cpu::Kernel& kernel = kernel_of(kernel_index);
  const cpu::Format format = ternary_format(storage_format);
  require(weight.is_cpu() && is_floating(weight.scalar_type()) && weight.dim() == 2 && weight.numel() > 0,
          "weight must be a float32, bfloat16 or float16 CPU tensor [out_features, in_features], not empty");
  const Tensor rows = torch::stable::contiguous(weight);
  const cpu::FloatWeight w{rows.const_data_ptr(), dtype_of<cpu::Dtype>(rows.scalar_type()), rows.size(0), rows.size(1)};
  const int64_t per_byte = cpu::weights_per_byte(format);
  Tensor packed = allocate_cpu({w.n, (w.k + per_byte - 1) / per_byte}, ScalarType::Byte);
  Tensor scale = allocate_cpu({per_channel ? w.n : 1}, ScalarType::Float);
  cpu::quantize_ternary(kernel, format, {per_channel, absmean, static_cast<float>(threshold_factor)}, w,
                        static_cast<uint8_t*>(packed.mutable_data_ptr()), static_cast<float*>(scale.mutable_data_ptr()),
                        parallel_for);
  return {packed, scale};
}

template <cpu::Format format>
void dequantize_to(const Tensor& packed, int64_t k, const Tensor& scale, Tensor& weight) {
  const auto* bytes = static_cast<const uint8_t*>(packed.const_data_ptr());
  const auto* scales = static_cast<const float*>(scale.const_data_ptr());
  const int64_t n = packed.size(0), stride = scale.size(0) == 1 ? 0 : 1;
  void* to = weight.mutable_data_ptr();
  switch (weight.scalar_type()) {
    case ScalarType::Float:
      return cpu::dequantize_ternary<format, cpu::Dtype::kFloat32>(bytes, n, k, scales, stride, to, parallel_for);
    case ScalarType::BFloat16:
      return cpu::dequantize_ternary<format, cpu::Dtype::kBFloat16>(bytes, n, k, scales, stride, to, parallel_for);
    default:
      return cpu::dequantize_ternary<format, cpu::Dtype::kFloat16>(bytes, n, k, scales, stride, to, parallel_for);
  }
}

Tensor dequantize_ternary(const Tensor& packed, const Tensor& scale, int64_t in_features, int64_t storage_format,
                          ScalarType dtype) {
  const cpu::Format format = ternary_format(storage_format);
  require(in_features >= 1 && is_floating(dtype), "in_features must be at least 1, dtype a floating-point one");
  require(scale.dim() == 1, "weight_scale must be [1] or [out_features]");
  checked_scale_stride([](const Tensor& tensor) { return tensor.is_cpu(); }, in_features, cpu::weights_per_byte(format),
                       0, packed, scale, nullptr, nullptr);
  Tensor weight = allocate_cpu({packed.size(0), in_features}, dtype);
  if (format == cpu::Format::k2Bit) {
    dequantize_to<cpu::Format::k2Bit>(packed, in_features, scale, weight);
  } else {
    dequantize_to<cpu::Format::kBase3>(packed, in_features, scale, weight);
  }
  return weight;
}

std::tuple<Tensor, Tensor> quantize_tokens(const Tensor& x, bool per_tensor, int64_t kernel_index) {
  const cpu::Kernel& kernel = kernel_of(kernel_index);
  require(x.is_cpu() && is_floating(x.scalar_type()) && x.dim() == 2 && x.numel() > 0,
          "x must be a float32, bfloat16 or float16 CPU tensor [tokens, in_features], not empty");
  const std::optional<int64_t> stride = row_stride(x);
  const Tensor rows = stride ? x : torch::stable::contiguous(x);
  const int64_t m = x.size(0), k = x.size(1);
  Tensor q = allocate_cpu({m, k}, ScalarType::Char);
  Tensor scale = per_tensor ? allocate_cpu({1}, ScalarType::Float) : allocate_cpu({m, 1}, ScalarType::Float);
  cpu::quantize_tokens(kernel, rows.const_data_ptr(), dtype_of<cpu::Dtype>(x.scalar_type()), m, k, stride.value_or(k),
                       per_tensor, static_cast<int8_t*>(q.mutable_data_ptr()),
                       static_cast<float*>(scale.mutable_data_ptr()), parallel_for);
  return {q, scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bitlab, m) {
  m.def(
      "quantize_ternary(Tensor weight, bool per_channel, bool absmean, float threshold_factor, int storage_format, "
      "int kernel) -> (Tensor, Tensor)");
  m.def(
      "dequantize_ternary(Tensor weight_packed, Tensor weight_scale, int in_features, int storage_format, "
      "ScalarType dtype) -> Tensor");
  m.def("quantize_tokens(Tensor x, bool per_tensor, int kernel) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bitlab, CPU, m) {
  m.impl("quantize_ternary", TORCH_BOX(&quantize_ternary));
  m.impl("dequantize_ternary", TORCH_BOX(&dequantize_ternary));
  m.impl("quantize_tokens", TORCH_BOX(&quantize_tokens));
}
