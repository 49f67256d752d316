// What the CPU operators are told of packed weights, checked.
#pragma once

#include <vector>

#include "../cpu/dispatch.h"
#include "../cpu/linear.h"
#include "tensors.h"

namespace bitlab {

// What a layer's config says, in one integer, because each argument costs 0.2 us a call. Made in
// bitcore/kernels/cpu.py.
struct Mode {
  explicit Mode(int64_t bits)
      : kernel(bits & 0xff), format(bits >> 8 & 3), quantization(bits >> 10 & 3), group_size(bits >> 16) {
    require(bits >= 0 && kernel < cpu::kernel_count() && quantization < 3,
            "mode names no kernel or quantization of this build");
  }

  int64_t kernel, format, quantization, group_size;
};

// A weight with its checked tensors, and a float32 bias if it was none.
struct CheckedWeight {
  CheckedWeight(const cpu::Layout& layout, int64_t k, const Tensor& packed, const Tensor& scale,
                const Tensor* zero_point, const Tensor* bias) {
    const int64_t scale_stride =
        checked_scale_stride([](const Tensor& tensor) { return tensor.is_cpu(); }, k,
                             cpu::weights_per_byte(layout.format), layout.group_size, packed, scale, zero_point, bias);
    const bool convert = bias != nullptr && bias->scalar_type() != ScalarType::Float;
    if (convert) bias_float32 = as_float32(*bias);
    weight = {
        .packed = static_cast<const uint8_t*>(packed.const_data_ptr()),
        .n = packed.size(0),
        .scale = static_cast<const float*>(scale.const_data_ptr()),
        .scale_stride = scale_stride,
        .zero_point = zero_point == nullptr ? nullptr : static_cast<const int8_t*>(zero_point->const_data_ptr()),
        .bias = convert           ? bias_float32.data()
                : bias != nullptr ? static_cast<const float*>(bias->const_data_ptr())
                                  : nullptr,
        .y = nullptr,
    };
  }

  cpu::Weight weight;
  std::vector<float> bias_float32;
};

inline cpu::Layout layout_of(const Mode& mode, int64_t in_features) {
  const auto format = static_cast<cpu::Format>(mode.format);
  require(in_features >= 1 && in_features <= cpu::most_in_features(format), "in_features is too small or too large");
  require(mode.group_size % cpu::weights_per_byte(format) == 0,
          "group_size must be a multiple of the weights in a byte");
  return {format, mode.group_size};
}

inline const cpu::Kernel& kernel_of(const Mode& mode) {
  const cpu::Kernel& kernel = cpu::kernel_at(static_cast<int>(mode.kernel));
  require(cpu::missing_features(kernel) == 0, "this CPU lacks instructions that the kernel needs");
  return kernel;
}

}  // namespace bitlab
