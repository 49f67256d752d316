// Attention of one position. Plain C++ in loops that compilers vectorize with the flags of the file that includes this
// one; in an anonymous namespace, so that each file has its own copy.
#pragma once

#include "float_formats.h"
#include "kernel.h"

namespace bitlab::cpu {
namespace {

constexpr int64_t kLanes = 16;  // sums that a dot product is kept in, so that it can be vectorized

template <Dtype dtype>
inline void load_row(const void* from, int64_t n, float* __restrict to) {
  for (int64_t i = 0; i < n; ++i) to[i] = load<dtype>(from, i);
}

inline float dot_of(const float* __restrict a, const float* __restrict b, int64_t n) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += a[i + j] * b[i + j];
  }
  for (int64_t j = 0; i + j < n; ++j) lanes[j] += a[i + j] * b[i + j];
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

// exp(x) for x <= 0, 0 below -87: 2**n * exp(r) with abs(r) <= ln(2) / 2, whose Taylor series is short. NaN stays NaN.
inline float exp_of(float x) {
  const float shifted = x * 0x1.715476p0f + 0x1.8p23f;  // n = x / ln(2), rounded, in the low bits
  const float n = shifted - 0x1.8p23f;
  const float r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  float y = 1.0f / 5040.0f;
  y = y * r + 1.0f / 720.0f;
  y = y * r + 1.0f / 120.0f;
  y = y * r + 1.0f / 24.0f;
  y = y * r + 1.0f / 6.0f;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  const float power = float_of((bits_of(shifted) + 127) << 23);
  return x < -87.0f ? 0.0f : y * power;
}

// In place: exp(s - max(s)). Returns their sum.
inline float softmax_numerators(float* __restrict scores, int64_t n) {
  float largest = scores[0];
  for (int64_t i = 1; i < n; ++i) largest = scores[i] > largest ? scores[i] : largest;
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) scores[i] = exp_of(scores[i] - largest);
  for (int64_t i = 0; i < n; ++i) lanes[i % kLanes] += scores[i];
  for (int64_t j = 1; j < kLanes; ++j) lanes[0] += lanes[j];
  return lanes[0];
}

template <Dtype dtype>
void attend_of(const Attention& a) {
  constexpr int64_t kItem = dtype == Dtype::kFloat32 ? 4 : 2;
  float q[kMaxHeads][kMaxHeadDim], sums[kMaxHeads][kMaxHeadDim], row[kMaxHeadDim], totals[kMaxHeads];
  const auto* keys = static_cast<const char*>(a.keys);
  const auto* values = static_cast<const char*>(a.values);
  for (int64_t h = 0; h < a.heads; ++h) {
    load_row<dtype>(static_cast<const char*>(a.q) + h * a.q_stride * kItem, a.head_dim, q[h]);
    for (int64_t i = 0; i < a.head_dim; ++i) {
      q[h][i] *= a.scale;
      sums[h][i] = 0.0f;
    }
  }
  for (int64_t t = 0; t < a.length; ++t) {
    load_row<dtype>(keys + t * a.key_stride * kItem, a.head_dim, row);
    for (int64_t h = 0; h < a.heads; ++h) a.scores[h * a.length + t] = dot_of(q[h], row, a.head_dim);
  }
  for (int64_t h = 0; h < a.heads; ++h) totals[h] = softmax_numerators(a.scores + h * a.length, a.length);
  for (int64_t t = 0; t < a.length; ++t) {
    load_row<dtype>(values + t * a.value_stride * kItem, a.head_dim, row);
    for (int64_t h = 0; h < a.heads; ++h) {
      const float weight = a.scores[h * a.length + t];
      float* __restrict to = sums[h];
      for (int64_t i = 0; i < a.head_dim; ++i) to[i] += weight * row[i];
    }
  }
  for (int64_t h = 0; h < a.heads; ++h) {
    for (int64_t i = 0; i < a.head_dim; ++i) store<dtype>(a.y, h * a.head_dim + i, sums[h][i] / totals[h]);
  }
}

void attend(const Attention& attention, Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32: return attend_of<Dtype::kFloat32>(attention);
    case Dtype::kBFloat16: return attend_of<Dtype::kBFloat16>(attention);
    default: return attend_of<Dtype::kFloat16>(attention);
  }
}

}  // namespace
}  // namespace bitlab::cpu
