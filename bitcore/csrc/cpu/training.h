// What training needs besides the product: float weights to packed ternary ones and back, float activations to int8.
// Torch-free: the caller owns the memory and the threads. parallel_for(count, grain, f) calls f(begin, end).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "absmax.h"
#include "float_formats.h"
#include "kernel.h"

namespace bitlab::cpu {

constexpr int64_t kWeightsPerTask = int64_t{1} << 15;

inline int64_t rows_per_task(int64_t k) { return std::max<int64_t>(1, kWeightsPerTask / std::max<int64_t>(k, 1)); }

// The rule that makes weights ternary: the absmean of a row or of the tensor, or a share of its largest magnitude.
struct TernaryRule {
  bool per_channel;
  bool absmean;            // else threshold
  float threshold_factor;  // of threshold
};

struct FloatWeight {
  const void* data;  // [n, k], contiguous
  Dtype dtype;
  int64_t n, k;

  const void* row(int64_t r) const { return static_cast<const char*>(data) + r * k * item_size(dtype); }
};

// packed [n, bytes], scale [1] or [n]. Written so that a scale of NaN stays NaN, as PyTorch's clamp leaves it.
template <class ParallelFor>
void quantize_ternary(const Kernel& kernel, Format format, const TernaryRule& rule, const FloatWeight& w,
                      uint8_t* packed, float* scale, const ParallelFor& parallel_for) {
  const auto at_least = [](float value, float smallest) { return value < smallest ? smallest : value; };
  const auto scale_of_sum = [&](double sum, int64_t count) {
    return at_least(static_cast<float>(sum / static_cast<double>(count)), 1e-5f);
  };
  const auto scale_of_bits = [&](uint32_t bits) { return at_least(float_of(bits), 1e-8f); };

  std::vector<double> sums(rule.absmean ? static_cast<size_t>(w.n) : 0);
  std::vector<uint32_t> largest(rule.absmean ? 0 : static_cast<size_t>(w.n));
  const auto measure = [&](int64_t r) {
    const auto index = static_cast<size_t>(r);
    if (rule.absmean) {
      sums[index] = kernel.magnitude_sum(w.row(r), w.dtype, w.k);
      if (rule.per_channel) scale[r] = scale_of_sum(sums[index], w.k);
    } else {
      largest[index] = kernel.absmax_bits(w.row(r), w.dtype, w.k);
      if (rule.per_channel) scale[r] = scale_of_bits(largest[index]);
    }
  };
  const int64_t row_bytes = (w.k + weights_per_byte(format) - 1) / weights_per_byte(format);
  const auto pack = [&](int64_t r) {
    const float its_scale = rule.per_channel ? scale[r] : scale[0];
    const float factor = rule.absmean ? 1.0f / its_scale : 1.0f;
    const float bound = rule.absmean ? 0.5f : rule.threshold_factor * its_scale;
    kernel.pack_ternary(format, w.row(r), w.dtype, w.k, factor, bound, packed + r * row_bytes);
  };
  const int64_t grain = rows_per_task(w.k);
  if (rule.per_channel) {  // a row is packed while it is in L1
    parallel_for(w.n, grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) measure(r), pack(r);
    });
    return;
  }
  parallel_for(w.n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) measure(r);
  });
  if (rule.absmean) {
    double sum = 0.0;
    for (const double row : sums) sum += row;
    scale[0] = scale_of_sum(sum, w.n * w.k);
  } else {
    scale[0] = scale_of_bits(*std::max_element(largest.begin(), largest.end()));
  }
  parallel_for(w.n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) pack(r);
  });
}

// The kPerByte weights that each byte stands for, times a scale: 16 bytes of float32 a lookup in 2bit.
template <Format format, Dtype dtype>
class WeightTable {
 public:
  static constexpr int kPerByte = weights_per_byte(format);
  using Value = std::conditional_t<dtype == Dtype::kFloat32, float, uint16_t>;

  void fill(float scale) {
    Value values[4];
    for (int code = 0; code < 4; ++code) store<dtype>(values, code, static_cast<float>(code - 1) * scale);
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t rest = byte;
      for (int j = 0; j < kPerByte; ++j) {
        if (format == Format::kBase3) {
          rest = (rest & 255) * 3;
          table_[byte][static_cast<size_t>(j)] = values[rest >> 8];
        } else {
          table_[byte][static_cast<size_t>(j)] = values[byte >> 2 * j & 3];
        }
      }
    }
  }

  void decode(const uint8_t* packed, int64_t k, Value* w) const {
    const int64_t whole = k / kPerByte;
    for (int64_t i = 0; i < whole; ++i) memcpy(w + kPerByte * i, table_[packed[i]].data(), sizeof table_[0]);
    for (int64_t i = whole * kPerByte; i < k; ++i) w[i] = table_[packed[whole]][static_cast<size_t>(i % kPerByte)];
  }

 private:
  std::array<std::array<Value, kPerByte>, 256> table_;
};

// w [n, k] of `dtype` = (codes - 1) * scale, scale_stride 0 for one scale for all rows.
template <Format format, Dtype dtype, class ParallelFor>
void dequantize_ternary(const uint8_t* packed, int64_t n, int64_t k, const float* scale, int64_t scale_stride, void* w,
                        const ParallelFor& parallel_for) {
  using Table = WeightTable<format, dtype>;
  const int64_t row_bytes = (k + Table::kPerByte - 1) / Table::kPerByte;
  parallel_for(n, rows_per_task(k), [&](int64_t begin, int64_t end) {
    Table table;
    for (int64_t r = begin; r < end; ++r) {
      if (r == begin || scale_stride != 0) table.fill(scale[r * scale_stride]);
      table.decode(packed + r * row_bytes, k, static_cast<typename Table::Value*>(w) + r * k);
    }
  });
}

// absmax in the order of x: q [m, k] int8, scale [m] or [1]. As Linear::quantize_token, which deals q to planes.
template <class ParallelFor>
void quantize_tokens(const Kernel& kernel, const void* x, Dtype dtype, int64_t m, int64_t k, int64_t x_stride,
                     bool per_tensor, int8_t* q, float* scale, const ParallelFor& parallel_for) {
  const auto token = [&](int64_t t) { return static_cast<const char*>(x) + t * x_stride * item_size(dtype); };
  uint32_t tensor_bits = 0;
  if (per_tensor) {
    for (int64_t t = 0; t < m; ++t) tensor_bits = std::max(tensor_bits, kernel.absmax_bits(token(t), dtype, k));
  }
  parallel_for(m, rows_per_task(k), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const uint32_t bits = per_tensor ? tensor_bits : kernel.absmax_bits(token(t), dtype, k);
      const Int8Scale int8 = int8_scale(bits);
      if (!per_tensor || t == 0) scale[per_tensor ? 0 : t] = int8.scale;
      if (!int8.finite) {
        memset(q + t * k, 0, static_cast<size_t>(k));
        continue;
      }
      int32_t sum;
      kernel.quantize(token(t), dtype, k, int8.factor, 1, 1, q + t * k, 0, &sum);
    }
  });
}

}  // namespace bitlab::cpu
