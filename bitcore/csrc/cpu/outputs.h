// From the int32 sums of matmul to y. Plain C++ in loops that compilers vectorize with the flags of the file that
// includes this one; in an anonymous namespace, so that each file has its own copy.
#pragma once

#include "float_formats.h"
#include "kernel.h"

namespace bitlab::cpu {
namespace {

// A difference that may pass 2**31 on its way; as unsigned numbers it comes out right.
inline int32_t minus(int32_t a, uint32_t b) { return static_cast<int32_t>(static_cast<uint32_t>(a) - b); }

// kStride: 0 or 1, or -1 for any other. zeros: what the codes' zero adds to the sums of each digit.
template <int kDigits, int kStride, bool kAdd>
void scale_sums_of(const Sums& s, const uint32_t* zeros, int64_t n, float* __restrict total) {
  const int32_t* __restrict acc0 = s.acc;
  const int32_t* __restrict acc1 = s.acc + (kDigits - 1) / 2 * s.acc_stride;
  const int32_t* __restrict acc2 = s.acc + (kDigits - 1) * s.acc_stride;
  const uint32_t zero0 = zeros[0], zero1 = zeros[1], zero2 = zeros[2];
  const int64_t stride = kStride < 0 ? s.scale_stride : kStride;
  const float* __restrict w_scale = s.w_scale;
  const float x_scale = s.x_scale;
  for (int64_t i = 0; i < n; ++i) {
    float product = static_cast<float>(minus(acc0[i], zero0));
    if constexpr (kDigits > 1) {
      product = product * 256.0f + static_cast<float>(minus(acc1[i], zero1));
      product = product * 256.0f + static_cast<float>(minus(acc2[i], zero2));
    }
    const float value = product * (x_scale * w_scale[i * stride]);
    total[i] = kAdd ? total[i] + value : value;
  }
}

template <int kDigits, bool kAdd>
void scale_sums_by_stride(const Sums& s, const uint32_t* zeros, int64_t n, float* total) {
  switch (s.scale_stride) {
    case 0: return scale_sums_of<kDigits, 0, kAdd>(s, zeros, n, total);
    case 1: return scale_sums_of<kDigits, 1, kAdd>(s, zeros, n, total);
    default: return scale_sums_of<kDigits, -1, kAdd>(s, zeros, n, total);
  }
}

void scale_sums(const Sums& s, int64_t n, bool add, float* total) {
  uint32_t zeros[kFloatDigits] = {};
  for (int d = 0; d < s.digits; ++d) {
    const auto x_sum = static_cast<uint32_t>(s.x_sums[d]);
    zeros[d] = static_cast<uint32_t>(s.code_of_zero) * x_sum;
    if (s.zero_point != nullptr) {
      int32_t* acc = s.acc + d * s.acc_stride;
      for (int64_t i = 0; i < n; ++i) {
        acc[i] = minus(acc[i], static_cast<uint32_t>(static_cast<int32_t>(s.zero_point[i * s.scale_stride])) * x_sum);
      }
    }
  }
  if (s.digits == 1) {
    add ? scale_sums_by_stride<1, true>(s, zeros, n, total) : scale_sums_by_stride<1, false>(s, zeros, n, total);
  } else {
    add ? scale_sums_by_stride<3, true>(s, zeros, n, total) : scale_sums_by_stride<3, false>(s, zeros, n, total);
  }
}

template <Dtype dtype>
void write_of(const float* __restrict total, int64_t n, float factor, const float* __restrict bias,
              void* __restrict y) {
  if (bias == nullptr) {
    for (int64_t i = 0; i < n; ++i) store<dtype>(y, i, total[i] * factor);
  } else {
    for (int64_t i = 0; i < n; ++i) store<dtype>(y, i, total[i] * factor + bias[i]);
  }
}

void write(const float* total, int64_t n, float factor, const float* bias, void* y, Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32: return write_of<Dtype::kFloat32>(total, n, factor, bias, y);
    case Dtype::kBFloat16: return write_of<Dtype::kBFloat16>(total, n, factor, bias, y);
    default: return write_of<Dtype::kFloat16>(total, n, factor, bias, y);
  }
}

template <Dtype dtype>
void square_of(const void* __restrict x, int64_t n, float* __restrict y) {
  for (int64_t i = 0; i < n; ++i) {
    const float value = load<dtype>(x, i);
    y[i] = value * value;
  }
}

void square(const void* x, int64_t n, float* y, Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32: return square_of<Dtype::kFloat32>(x, n, y);
    case Dtype::kBFloat16: return square_of<Dtype::kBFloat16>(x, n, y);
    default: return square_of<Dtype::kFloat16>(x, n, y);
  }
}

template <Dtype dtype>
void normalize_of(const void* __restrict x, const void* __restrict weight, int64_t n, float factor,
                  void* __restrict y) {
  for (int64_t i = 0; i < n; ++i) store<dtype>(y, i, load<dtype>(x, i) * factor * load<dtype>(weight, i));
}

void normalize(const void* x, const void* weight, int64_t n, float factor, void* y, Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32: return normalize_of<Dtype::kFloat32>(x, weight, n, factor, y);
    case Dtype::kBFloat16: return normalize_of<Dtype::kBFloat16>(x, weight, n, factor, y);
    default: return normalize_of<Dtype::kFloat16>(x, weight, n, factor, y);
  }
}

}  // namespace
}  // namespace bitlab::cpu
