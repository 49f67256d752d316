// What a decoder's step leaves to PyTorch, in tensors of its own.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../cpu/decoder.h"
#include "../cpu/sum_order.h"
#include "tensors.h"

namespace bitlab {

enum class ActivationName : int64_t { kSquaredRelu, kSilu, kGelu };

inline Tensor empty_rows(int64_t rows, int64_t n, int32_t dtype) {
  const int64_t sizes[] = {rows, n}, strides[] = {n, 1};
  return allocate(2, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0);
}

// Nothing is done in place: a thread that is not in inference mode may not write into a tensor that was made there.
class PyTorchOperators final : public cpu::Operators {
 public:
  PyTorchOperators(const cpu::DecoderSizes& sizes, ActivationName activation, int32_t dtype, const Tensor& frequencies,
                   double attention_scale)
      : dtype_(sizes.dtype),
        activation_(activation),
        gate_(empty_rows(sizes.rows, sizes.intermediate, dtype)),
        angles_(empty_rows(1, sizes.head_dim / 2, aoti_torch_dtype_float32())),
        attention_scale_(static_cast<float>(attention_scale)) {
    const auto* const values = static_cast<const float*>(frequencies.const_data_ptr());
    frequencies_.assign(values, values + frequencies.numel());
    for (int64_t row = 0; row < sizes.rows; ++row) {
      for (const int64_t n : {sizes.hidden, sizes.heads * sizes.head_dim, sizes.intermediate}) {
        squares_.try_emplace({row, n}, empty_rows(1, n, aoti_torch_dtype_float32()));
        sum_lanes_.try_emplace(n, 0);
      }
    }
    for (auto& [n, lanes] : sum_lanes_) {
      lanes = cpu::lanes_of_order(n, [this](const float* x, int64_t size) {
        memcpy(squares(0, size), x, static_cast<size_t>(size) * sizeof *x);
        return sum_by_pytorch(squares_.at({0, size}));
      });
    }
  }

  float* squares(int64_t row, int64_t n) override {
    return static_cast<float*>(squares_.at({row, n}).mutable_data_ptr());
  }

  // A call of PyTorch takes 5 us, of which adding is 0.2.
  float sum_of_squares(int64_t row, int64_t n) override {
    const int lanes = sum_lanes_.at(n);
    return lanes == 0 ? sum_by_pytorch(squares_.at({row, n})) : cpu::sum_in_order(squares(row, n), n, lanes);
  }

  void activate() override {
    using torch::stable::detail::from;
    StableIValue stack[] = {from(gate_), 0};
    const bool gelu = activation_ == ActivationName::kGelu;
    if (gelu) stack[1] = from(std::string("none"));
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(gelu ? "aten::gelu" : "aten::silu", "", stack, TORCH_ABI_VERSION));
    const auto activated = torch::stable::detail::to<Tensor>(stack[0]);
    memcpy(gate(), activated.const_data_ptr(), static_cast<size_t>(gate_.numel()) * gate_.element_size());
  }

  void turn_to(int64_t position, void* cos, void* sin) override {
    auto* const angles = static_cast<float*>(angles_.mutable_data_ptr());
    for (size_t i = 0; i < frequencies_.size(); ++i) angles[i] = static_cast<float>(position) * frequencies_[i];
    put_twice(by_pytorch("aten::cos", angles_), 1.0f, cos);
    put_twice(by_pytorch("aten::sin", angles_), -1.0f, sin);
  }

  char* gate() { return static_cast<char*>(gate_.mutable_data_ptr()); }

 private:
  static float sum_by_pytorch(const Tensor& x) {
    constexpr int64_t kLast = -1;
    const Tensor total = torch::stable::sum(x, torch::headeronly::IntHeaderOnlyArrayRef(&kLast, 1));
    return *static_cast<const float*>(total.const_data_ptr());
  }

  static Tensor by_pytorch(const char* name, const Tensor& x) {
    StableIValue stack[] = {torch::stable::detail::from(x)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack, TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
  }

  // [head_dim] from its half, the first time with a sign.
  void put_twice(const Tensor& half, float sign, void* to) const {
    const auto* const values = static_cast<const float*>(half.const_data_ptr());
    const auto n = static_cast<int64_t>(frequencies_.size());
    for (int64_t i = 0; i < n; ++i) {
      const float value = values[i] * attention_scale_;
      put(sign * value, to, i);
      put(value, to, n + i);
    }
  }

  void put(float value, void* to, int64_t index) const {
    switch (dtype_) {
      case cpu::Dtype::kFloat32: return cpu::store<cpu::Dtype::kFloat32>(to, index, value);
      case cpu::Dtype::kBFloat16: return cpu::store<cpu::Dtype::kBFloat16>(to, index, value);
      default: return cpu::store<cpu::Dtype::kFloat16>(to, index, value);
    }
  }

  cpu::Dtype dtype_;
  ActivationName activation_;
  Tensor gate_, angles_;
  float attention_scale_;
  std::vector<float> frequencies_;
  std::map<std::pair<int64_t, int64_t>, Tensor> squares_;  // by row and size
  std::map<int64_t, int> sum_lanes_;                       // by size, as sum_order.h has them
};

}  // namespace bitlab
