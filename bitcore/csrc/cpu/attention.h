// Attention of one position. Generic vectors of 16 floats, which compilers map to the registers that the flags of the
// file that includes this one allow; in an anonymous namespace, so that each file has its own copy.
#pragma once

#include "float_formats.h"
#include "kernel.h"

namespace bitlab::cpu {
namespace {

// Arrays of lanes stay in registers only where the loops over them are unrolled.
#define UNROLL_LANES _Pragma("GCC unroll 16")

constexpr int64_t kLanes = 16;
typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));

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

inline float sum_of(Lanes lanes) {
  lanes += __builtin_shufflevector(lanes, lanes, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  lanes += __builtin_shufflevector(lanes, lanes, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  lanes += __builtin_shufflevector(lanes, lanes, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  return lanes[0] + lanes[1];
}

// The two halves of each group of kGroup lanes of a and b, added: groups of half the size, those of a first.
template <int kGroup>
inline Lanes add_halves(Lanes a, Lanes b) {
  Lanes first, second;
  if constexpr (kGroup == 16) {
    first = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    second = __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  } else if constexpr (kGroup == 8) {
    first = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    second = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  } else if constexpr (kGroup == 4) {
    first = __builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29);
    second = __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
  } else {
    first = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    second = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  }
  return first + second;
}

// sums[t] += lanes of q * rows[t], kVectors parts of q in registers for all rows.
template <int kVectors>
inline void multiply_parts(const float* q, const float (*rows)[kMaxHeadDim], int64_t first, Lanes (&sums)[kLanes]) {
  Lanes parts[kVectors];
  UNROLL_LANES for (int i = 0; i < kVectors; ++i) parts[i] = lanes_at(q + kLanes * (first + i));
  UNROLL_LANES for (int t = 0; t < kLanes; ++t) {
    UNROLL_LANES for (int i = 0; i < kVectors; ++i) { sums[t] += parts[i] * lanes_at(rows[t] + kLanes * (first + i)); }
  }
}

// The dot products of q with kLanes rows.
inline Lanes dots_of(const float* q, const float (*rows)[kMaxHeadDim], int64_t vectors) {
  Lanes sums[kLanes] = {};
  int64_t first = 0;
  for (; first + 4 <= vectors; first += 4) multiply_parts<4>(q, rows, first, sums);
  for (; first < vectors; ++first) multiply_parts<1>(q, rows, first, sums);
  // Each step halves the number of vectors and the lanes of a row; the last leaves the rows in the order of sums 0, 8,
  // 4, 12, 2, 10, 6, 14, 1, ...: their numbers with the bits reversed.
  UNROLL_LANES for (int i = 0; i < 8; ++i) sums[i] = add_halves<16>(sums[i], sums[i + 8]);
  UNROLL_LANES for (int i = 0; i < 4; ++i) sums[i] = add_halves<8>(sums[i], sums[i + 4]);
  UNROLL_LANES for (int i = 0; i < 2; ++i) sums[i] = add_halves<4>(sums[i], sums[i + 2]);
  const Lanes reversed = add_halves<2>(sums[0], sums[1]);
  return __builtin_shufflevector(reversed, reversed, 0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15);
}

// to += sum of weights[t] * rows[t], kVectors parts of it in registers from row to row.
template <int kVectors>
inline void add_parts(const float* weights, const float (*rows)[kMaxHeadDim], int64_t count, int64_t first, float* to) {
  Lanes sums[kVectors];
  UNROLL_LANES for (int i = 0; i < kVectors; ++i) sums[i] = lanes_at(to + kLanes * (first + i));
  for (int64_t t = 0; t < count; ++t) {
    UNROLL_LANES for (int i = 0; i < kVectors; ++i) sums[i] += weights[t] * lanes_at(rows[t] + kLanes * (first + i));
  }
  memcpy(to + kLanes * first, sums, sizeof sums);
}

inline void add_rows(const float* weights, const float (*rows)[kMaxHeadDim], int64_t count, int64_t vectors,
                     float* to) {
  int64_t first = 0;
  for (; first + 4 <= vectors; first += 4) add_parts<4>(weights, rows, count, first, to);
  for (; first < vectors; ++first) add_parts<1>(weights, rows, count, first, to);
}

// exp(x) for x <= 0, 0 below -87: 2**n * exp(r) with abs(r) <= ln(2) / 2, whose Taylor series is short. NaN stays NaN.
inline Lanes exp_of(Lanes x) {
  const Lanes shifted = x * 0x1.715476p0f + 0x1.8p23f;  // n = x / ln(2), rounded, in the low bits
  const Lanes n = shifted - 0x1.8p23f;
  const Lanes r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  Lanes y = r * (1.0f / 5040.0f) + 1.0f / 720.0f;
  y = y * r + 1.0f / 120.0f;
  y = y * r + 1.0f / 24.0f;
  y = y * r + 1.0f / 6.0f;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  const Bits power = (reinterpret_cast<const Bits&>(shifted) + 127) << 23;
  return x < -87.0f ? Lanes{} : y * reinterpret_cast<const Lanes&>(power);
}

// In place: exp(s - max(s)). Returns their sum.
inline float softmax_numerators(float* scores, int64_t n) {
  Lanes highest = Lanes{} + scores[0];
  int64_t whole = 0;
  for (; whole + kLanes <= n; whole += kLanes) {
    const Lanes lanes = lanes_at(scores + whole);
    highest = lanes > highest ? lanes : highest;
  }
  float largest = scores[0];
  for (int64_t i = 0; i < kLanes; ++i) largest = highest[i] > largest ? highest[i] : largest;
  for (int64_t i = whole; i < n; ++i) largest = scores[i] > largest ? scores[i] : largest;
  Lanes sum = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    const size_t size = static_cast<size_t>(n - i < kLanes ? n - i : kLanes) * sizeof(float);
    Lanes lanes = Lanes{} - __builtin_inff();  // behind the end: of no weight
    memcpy(&lanes, scores + i, size);
    lanes = exp_of(lanes - largest);
    memcpy(scores + i, &lanes, size);
    sum += lanes;
  }
  return sum_of(sum);
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
  alignas(64) float rows[kLanes][kMaxHeadDim] = {};  // of keys or values
  float totals[kMaxHeads];
  const int64_t vectors = (a.head_dim + kLanes - 1) / kLanes;
  const auto* keys = static_cast<const char*>(a.keys);
  const auto* values = static_cast<const char*>(a.values);
  for (int64_t h = 0; h < a.heads; ++h) {
    load_row<dtype>(static_cast<const char*>(a.q) + h * a.q_stride * kItem, a.head_dim, q[h]);
    for (int64_t i = 0; i < a.head_dim; ++i) q[h][i] *= a.scale;
  }
  for (int64_t first = 0; first < a.length; first += kLanes) {
    const int64_t count = a.length - first < kLanes ? a.length - first : kLanes;
    for (int64_t t = 0; t < count; ++t) {
      load_row<dtype>(keys + (first + t) * a.key_stride * kItem, a.head_dim, rows[t]);
    }
    for (int64_t h = 0; h < a.heads; ++h) {
      const Lanes scores = dots_of(q[h], rows, vectors);
      memcpy(a.scores + h * a.length + first, &scores, static_cast<size_t>(count) * sizeof(float));
    }
  }
  for (int64_t h = 0; h < a.heads; ++h) totals[h] = softmax_numerators(a.scores + h * a.length, a.length);
  for (int64_t first = 0; first < a.length; first += kLanes) {
    const int64_t count = a.length - first < kLanes ? a.length - first : kLanes;
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
