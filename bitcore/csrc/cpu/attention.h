// Attention of one position. Generic vectors of 16 floats, which compilers map to the registers that the flags of the
// file that includes this one allow; in an anonymous namespace, so that each file has its own copy.
#pragma once

#include "float_formats.h"
#include "kernel.h"

namespace bitlab::cpu {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kRowsAtOnce = 16;  // of values, as floats in L1
typedef float Lanes __attribute__((vector_size(4 * kLanes)));

inline Lanes lanes_at(const float* p) {
  Lanes lanes;
  memcpy(&lanes, p, sizeof lanes);
  return lanes;
}

// n values, and zeros up to whole vectors.
template <Dtype dtype>
inline void load_row(const void* from, int64_t n, float* __restrict to) {
  for (int64_t i = 0; i < n; ++i) to[i] = load<dtype>(from, i);
  for (int64_t i = n; i % kLanes != 0; ++i) to[i] = 0.0f;
}

inline float dot_of(const float* a, const float* b, int64_t vectors) {
  Lanes even = {}, odd = {};
  int64_t i = 0;
  for (; i + 1 < vectors; i += 2) {
    even += lanes_at(a + kLanes * i) * lanes_at(b + kLanes * i);
    odd += lanes_at(a + kLanes * (i + 1)) * lanes_at(b + kLanes * (i + 1));
  }
  if (i < vectors) even += lanes_at(a + kLanes * i) * lanes_at(b + kLanes * i);
  Lanes sum = even + odd;
  sum += __builtin_shufflevector(sum, sum, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  sum += __builtin_shufflevector(sum, sum, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  sum += __builtin_shufflevector(sum, sum, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  return sum[0] + sum[1];
}

// to += sum of weights[t] * rows[t], with each part of the sum in one register from row to row.
inline void add_rows(const float* weights, const float (*rows)[kMaxHeadDim], int64_t count, int64_t vectors,
                     float* to) {
  for (int64_t i = 0; i < vectors; ++i) {
    Lanes sum = lanes_at(to + kLanes * i);
    for (int64_t t = 0; t < count; ++t) sum += weights[t] * lanes_at(rows[t] + kLanes * i);
    memcpy(to + kLanes * i, &sum, sizeof sum);
  }
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
inline float softmax_numerators(float* scores, int64_t n) {
  float largest = scores[0], sum = 0.0f;
  for (int64_t i = 1; i < n; ++i) largest = scores[i] > largest ? scores[i] : largest;
  for (int64_t i = 0; i < n; ++i) scores[i] = exp_of(scores[i] - largest);
  for (int64_t i = 0; i < n; ++i) sum += scores[i];
  return sum;
}

template <Dtype dtype>
void rotate_half(const void* __restrict x, const void* __restrict cos, const void* __restrict sin, int64_t begin,
                 int64_t half, int64_t other, void* __restrict y) {
  for (int64_t i = begin; i < begin + half; ++i) {
    float rounded = load<dtype>(x, i) * load<dtype>(cos, i);
    if constexpr (dtype == Dtype::kBFloat16) rounded = from_bfloat16(to_bfloat16(rounded));
    if constexpr (dtype == Dtype::kFloat16) rounded = from_float16(to_float16(rounded));
    store<dtype>(y, i, rounded + load<dtype>(x, i + other) * load<dtype>(sin, i));
  }
}

void rotate(const void* x, const void* cos, const void* sin, int64_t n, void* y, Dtype dtype) {
  const int64_t half = n / 2;
  for (int64_t begin = 0; begin < n; begin += half) {
    const int64_t other = begin == 0 ? half : -half;
    switch (dtype) {
      case Dtype::kFloat32: rotate_half<Dtype::kFloat32>(x, cos, sin, begin, half, other, y); break;
      case Dtype::kBFloat16: rotate_half<Dtype::kBFloat16>(x, cos, sin, begin, half, other, y); break;
      default: rotate_half<Dtype::kFloat16>(x, cos, sin, begin, half, other, y); break;
    }
  }
}

template <Dtype dtype>
void attend_of(const Attention& a) {
  constexpr int64_t kItem = dtype == Dtype::kFloat32 ? 4 : 2;
  alignas(64) float q[kMaxHeads][kMaxHeadDim], sums[kMaxHeads][kMaxHeadDim] = {};
  alignas(64) float rows[kRowsAtOnce][kMaxHeadDim];
  float totals[kMaxHeads];
  const int64_t vectors = (a.head_dim + kLanes - 1) / kLanes;
  const auto* keys = static_cast<const char*>(a.keys);
  const auto* values = static_cast<const char*>(a.values);
  for (int64_t h = 0; h < a.heads; ++h) {
    load_row<dtype>(static_cast<const char*>(a.q) + h * a.q_stride * kItem, a.head_dim, q[h]);
    for (int64_t i = 0; i < a.head_dim; ++i) q[h][i] *= a.scale;
  }
  for (int64_t t = 0; t < a.length; ++t) {
    load_row<dtype>(keys + t * a.key_stride * kItem, a.head_dim, rows[0]);
    for (int64_t h = 0; h < a.heads; ++h) a.scores[h * a.length + t] = dot_of(q[h], rows[0], vectors);
  }
  for (int64_t h = 0; h < a.heads; ++h) totals[h] = softmax_numerators(a.scores + h * a.length, a.length);
  for (int64_t first = 0; first < a.length; first += kRowsAtOnce) {
    const int64_t count = a.length - first < kRowsAtOnce ? a.length - first : kRowsAtOnce;
    for (int64_t t = 0; t < count; ++t) {
      load_row<dtype>(values + (first + t) * a.value_stride * kItem, a.head_dim, rows[t]);
    }
    for (int64_t h = 0; h < a.heads; ++h) add_rows(a.scores + h * a.length + first, rows, count, vectors, sums[h]);
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
