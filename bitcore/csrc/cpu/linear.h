// y = dequantize(quantize(x) @ weight.T) + bias on one of the kernels, for one weight or for several that read the same
// x: what is computed in which order, and who computes what. Torch-free: the caller owns the memory and the threads.
//
//   1. quantize   every token once, into scratch                                   parallel over tokens
//   2. multiply   blocks of rows that stay in L2 x tiles of tokens that stay in L1  parallel over rows
//      and write  while a block's int32 sums are still in L1
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absmax.h"
#include "float_formats.h"
#include "kernel.h"
#include "scratch.h"

namespace bitlab::cpu {

// How x becomes int8. kFloat: three int8 digits a value, so that only a 24-bit rounding is lost.
enum class Quantization : int { kPerToken, kPerTensor, kFloat };

struct Activations {
  const void* x;  // [m, k], rows x_stride elements apart
  Dtype dtype;    // of x and y
  int64_t m, k;
  int64_t x_stride;
  Quantization quantization;
};

struct Weight {
  const uint8_t* packed;  // [n, ceil(k / weights_per_byte)]
  int64_t n;
  const float* scale;        // [1], [n] or [n, groups]
  int64_t scale_stride;      // 0, 1 or groups
  const int8_t* zero_point;  // as scale, or null
  const float* bias;         // [n] or null
  void* y;                   // [m, n], contiguous
};

// What all weights of a call have in common.
struct Layout {
  Format format;
  int64_t group_size;  // input features a scale, a multiple of weights_per_byte; 0 without groups
};

constexpr int64_t kRowBlock = 128;                      // rows multiplied before their sums are stored
constexpr int64_t kRowUnit = 4;                         // rows that a thread takes together
constexpr int64_t kTokenTile = 8;                       // tokens multiplied before their sums are stored
constexpr int64_t kTranscodedVectors = 32;              // from here on base3 is decoded once for all
constexpr int64_t kTranscodedBytes = int64_t{1} << 18;  // of rows decoded at once, to stay in L2
constexpr int64_t kScratchBytes = int64_t{4} << 20;     // activations quantized at once
constexpr int64_t kProductsPerTask = int64_t{1} << 19;  // below this a second thread costs more than it brings
constexpr int64_t kActivationsPerTask = int64_t{1} << 14;

// Modulo 2**32: a sum of codes and activations may pass 2**31 before the zero of the codes is taken away.
inline int32_t wrapping_sum(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}

// One call: the sizes that follow from its arguments, and its two steps. `run` takes both; a caller that divides the
// work itself reserves memory, quantizes every token, and then multiplies all units.
class Linear {
 public:
  Linear(const Kernel& kernel, const Layout& layout, const Activations& activations, const Weight* weights,
         int64_t weight_count, Scratch& scratch)
      : kernel_(kernel),
        layout_(layout),
        a_(activations),
        weights_(weights),
        weight_count_(weight_count),
        scratch_(scratch) {
    planes_ = weights_per_byte(layout.format);
    digits_ = a_.quantization == Quantization::kFloat ? kFloatDigits : 1;
    group_size_ = layout.group_size == 0 ? a_.k : std::min(layout.group_size, a_.k);
    groups_ = (a_.k + group_size_ - 1) / group_size_;
    row_bytes_ = (a_.k + planes_ - 1) / planes_;
    plane_ = (row_bytes_ + kPlaneAlignment - 1) / kPlaneAlignment * kPlaneAlignment;
    transcodes_ = layout.format == Format::kBase3 && layout.group_size == 0 && a_.m * digits_ >= kTranscodedVectors;
    if (transcodes_) {
      quarter_ = (row_bytes_ + 4 * kPlaneAlignment - 1) / (4 * kPlaneAlignment) * kPlaneAlignment;
      const int64_t fitting = kTranscodedBytes / (plane_ + quarter_) / kRowUnit * kRowUnit;
      row_block_ = std::clamp(fitting, kRowUnit, kRowBlock);
    }
    for (int64_t i = 0; i < weight_count; ++i) row_units_ += units_of(weights[i]);
  }

  // parallel_for(count, grain, f) calls f(begin, end) over [0, count). Returns false when scratch memory cannot be had.
  template <class ParallelFor>
  bool run(const ParallelFor& parallel_for) {
    const int64_t fitting = kScratchBytes / token_bytes() / kTokenTile * kTokenTile;
    const int64_t chunk = std::min(a_.m, std::max(kTokenTile, fitting));
    if (!reserve(chunk)) return false;
    if (a_.quantization == Quantization::kPerTensor) {
      for (int64_t t = 0; t < a_.m; ++t) tensor_absmax_ = std::max(tensor_absmax_, absmax_bits(t));
    }
    for (int64_t first = 0; first < a_.m; first += chunk) {
      const int64_t tokens = std::min(chunk, a_.m - first);
      parallel_for(tokens, std::max<int64_t>(1, kActivationsPerTask / a_.k), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) quantize(first, t);
      });
      const int64_t products = kRowUnit * a_.k * tokens * digits_;
      parallel_for(row_units_, std::max<int64_t>(1, kProductsPerTask / products),
                   [&](int64_t begin, int64_t end) { multiply(first, tokens, begin, end); });
    }
    return true;
  }

  // Memory for `tokens` quantized tokens; false when it cannot be had.
  bool reserve(int64_t tokens) { return scratch_.reserve(tokens, token_bytes(), groups_ * digits_); }

  // Quantizes token first + t to place t.
  void quantize(int64_t first, int64_t t) {
    quantize_token(token_at(first + t), t,
                   a_.quantization == Quantization::kPerTensor ? tensor_absmax_ : absmax_bits(first + t));
  }

  // What `multiply` divides: the rows of all weights, kRowUnit at a time.
  int64_t units() const { return row_units_; }
  int64_t unit_bytes() const { return kRowUnit * row_bytes_; }

  // y of the tokens at places 0 to `tokens`, which are `first` and those behind it, for units begin to end.
  void multiply(int64_t first, int64_t tokens, int64_t begin, int64_t end) {
    for_each_weight(begin, end, [&](const Weight& weight, int64_t row_begin, int64_t row_end) {
      for (int64_t row = row_begin; row < row_end; row += row_block_) {
        const int64_t rows = std::min(row_block_, row_end - row);
        if (transcodes_) transcode(weight.packed + row * row_bytes_, rows);
        for (int64_t t = 0; t < tokens; t += kTokenTile) {
          multiply_block(weight, first, t, std::min(kTokenTile, tokens - t), row, rows);
        }
      }
    });
  }

  // Calls use(pointer, bytes) for the weights that units begin to end read.
  template <class Use>
  void for_each_read(int64_t begin, int64_t end, const Use& use) const {
    for_each_weight(begin, end, [&](const Weight& weight, int64_t row_begin, int64_t row_end) {
      use(weight.packed + row_begin * row_bytes_, (row_end - row_begin) * row_bytes_);
    });
  }

 private:
  static int64_t units_of(const Weight& weight) { return (weight.n + kRowUnit - 1) / kRowUnit; }

  const void* token_at(int64_t token) const {
    return static_cast<const char*>(a_.x) + token * a_.x_stride * item_size(a_.dtype);
  }

  uint32_t absmax_bits(int64_t token) const { return kernel_.absmax_bits(token_at(token), a_.dtype, a_.k); }

  int64_t token_bytes() const { return digits_ * planes_ * plane_; }

  // Calls use(weight, row_begin, row_end) for each part of units begin to end.
  template <class Use>
  void for_each_weight(int64_t begin, int64_t end, const Use& use) const {
    for (int64_t i = 0, unit = 0; i < weight_count_ && unit < end; unit += units_of(weights_[i]), ++i) {
      const int64_t row_begin = std::max<int64_t>(begin - unit, 0) * kRowUnit;
      const int64_t row_end = std::min(weights_[i].n, (end - unit) * kRowUnit);
      if (row_begin < row_end) use(weights_[i], row_begin, row_end);
    }
  }

  // absmax, all float32: int8_scale, and for floating-point activations the same with 16 bits more, and room for any
  // magnitude. A token with NaN or Inf gets q = 0 and scale = NaN, so that all its outputs are NaN and no other
  // token's are.
  void quantize_token(const void* x, int64_t t, uint32_t absmax) {
    const Int8Scale int8 = int8_scale(absmax);
    if (!int8.finite) {
      memset(scratch_.vectors(t), 0, static_cast<size_t>(token_bytes()));
      memset(scratch_.sums(t), 0, static_cast<size_t>(groups_ * digits_) * sizeof(int32_t));
      scratch_.scale(t) = int8.scale;
      return;
    }
    float factor;
    if (digits_ == 1) {
      factor = int8.factor;
      scratch_.scale(t) = int8.scale;
    } else {
      constexpr float kLargest = 127.0f * 65536.0f;
      const float largest = std::max(float_of(absmax), 1e-30f);
      factor = kLargest / largest;
      scratch_.scale(t) = largest / kLargest;
    }
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t begin = g * group_size_;
      kernel_.quantize(static_cast<const char*>(x) + begin * item_size(a_.dtype), a_.dtype,
                       std::min(group_size_, a_.k - begin), factor, digits_, planes_,
                       scratch_.vectors(t) + begin / planes_, plane_, scratch_.sums(t) + g * digits_);
    }
  }

  // [rows, plane_ + quarter_]: the two 2bit rows of each base3 row, padded with codes of 0.
  static std::vector<uint8_t>& transcoded() {
    thread_local std::vector<uint8_t> rows;
    return rows;
  }

  void transcode(const uint8_t* base3, int64_t rows) {
    const int64_t stride = plane_ + quarter_;
    transcoded().resize(static_cast<size_t>(rows * stride));
    for (int64_t r = 0; r < rows; ++r) {
      uint8_t* to = transcoded().data() + r * stride;
      kernel_.base3_to_2bit(base3 + r * row_bytes_, row_bytes_, to, to + plane_, quarter_);
      memset(to + row_bytes_, 0, static_cast<size_t>(plane_ - row_bytes_));
    }
  }

  // acc = transcoded rows x vectors of tokens t to t + tokens.
  void multiply_transcoded(int64_t t, int64_t tokens, int64_t rows, int32_t* acc) {
    alignas(64) int32_t fifth_acc[kTokenTile * kFloatDigits * kRowBlock];
    Product product{.x_q = scratch_.vectors(t),
                    .m = tokens * digits_,
                    .vector_stride = planes_ * plane_,
                    .plane = plane_,
                    .w = transcoded().data(),
                    .n = rows,
                    .row_stride = plane_ + quarter_,
                    .bytes = plane_,
                    .acc = acc,
                    .acc_stride = kRowBlock};
    kernel_.matmul(Format::k2Bit, product);
    product.x_q += 4 * plane_;
    product.plane = product.bytes = quarter_;
    product.w += plane_;
    product.acc = fifth_acc;
    kernel_.matmul(Format::k2Bit, product);
    for (int64_t v = 0; v < product.m; ++v) {
      for (int64_t r = 0; r < rows; ++r) {
        acc[v * kRowBlock + r] = wrapping_sum(acc[v * kRowBlock + r], fifth_acc[v * kRowBlock + r]);
      }
    }
  }

  void multiply_block(const Weight& weight, int64_t first, int64_t t, int64_t tokens, int64_t row, int64_t rows) {
    alignas(64) int32_t acc[kTokenTile * kFloatDigits * kRowBlock];
    alignas(64) float total[kTokenTile][kRowBlock];
    const bool grouped = layout_.group_size != 0;
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t byte = g * group_size_ / planes_;
      const int64_t bytes = g + 1 < groups_ ? group_size_ / planes_ : row_bytes_ - byte;
      if (transcodes_) {
        multiply_transcoded(t, tokens, rows, acc);
      } else {
        kernel_.matmul(layout_.format, {.x_q = scratch_.vectors(t) + byte,
                                        .m = tokens * digits_,
                                        .vector_stride = planes_ * plane_,
                                        .plane = plane_,
                                        .w = weight.packed + row * row_bytes_ + byte,
                                        .n = rows,
                                        .row_stride = row_bytes_,
                                        .bytes = bytes,
                                        .acc = acc,
                                        .acc_stride = kRowBlock});
      }
      const int64_t scale_at = row * weight.scale_stride + g;
      for (int64_t i = 0; i < tokens; ++i) {
        kernel_.scale_sums({.acc = acc + i * digits_ * kRowBlock,
                            .acc_stride = kRowBlock,
                            .digits = digits_,
                            .x_sums = scratch_.sums(t + i) + g * digits_,
                            .code_of_zero = code_of_zero(layout_.format, kernel_),
                            .zero_point = weight.zero_point == nullptr ? nullptr : weight.zero_point + scale_at,
                            .x_scale = grouped ? 1.0f : scratch_.scale(t + i),
                            .w_scale = weight.scale + scale_at,
                            .scale_stride = weight.scale_stride},
                           rows, g > 0, total[i]);
      }
    }
    for (int64_t i = 0; i < tokens; ++i) {
      char* y = static_cast<char*>(weight.y) + ((first + t + i) * weight.n + row) * item_size(a_.dtype);
      kernel_.write(total[i], rows, grouped ? scratch_.scale(t + i) : 1.0f,
                    weight.bias == nullptr ? nullptr : weight.bias + row, y, a_.dtype);
    }
  }

  const Kernel& kernel_;
  Layout layout_;
  Activations a_;
  const Weight* weights_;
  int64_t weight_count_;
  Scratch& scratch_;
  int planes_, digits_;
  int64_t group_size_, groups_, row_bytes_, plane_;
  int64_t row_block_ = kRowBlock;
  bool transcodes_;
  int64_t quarter_ = 0;
  int64_t row_units_ = 0;
  uint32_t tensor_absmax_ = 0;
};

}  // namespace bitlab::cpu
