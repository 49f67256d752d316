// The table of plain functions that every CPU kernel fills in: no torch, no threads, no allocation.
//
// All formats are multiplied in one way. A byte holds P codes (4 in 2bit, 5 in base3, 2 in int4, 1 in int8), so the
// activations are laid out in P planes: value P * i + j lies at byte i of plane j. Code j of 64 weight bytes then meets
// 64 neighbouring activations, and no byte of either is ever shuffled.
//
//     weights  w    [N, bytes]      uint8   bytes = ceil(K / P); codes are unsigned: weight + code_of_zero
//     vectors  x_q  [M, P, plane]   int8    plane = bytes padded to a multiple of 64
//
// A vector is a token of int8 activations, or one of the three int8 digits of a token of floating-point activations:
// x is about (digit_0 + digit_1 / 2**8 + digit_2 / 2**16) * scale, 24 bits in all.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace bitlab::cpu {

enum class Dtype : int { kFloat32, kBFloat16, kFloat16 };
constexpr int64_t item_size(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

enum class Format : int { k2Bit, kBase3, kInt4, kInt8 };

constexpr int weights_per_byte(Format format) {
  return format == Format::k2Bit ? 4 : format == Format::kBase3 ? 5 : format == Format::kInt4 ? 2 : 1;
}

// int32 holds the sum of as many products of codes and int8 activations.
constexpr int64_t most_in_features(Format format) {
  return int64_t{1} << (format == Format::kInt8 ? 16 : format == Format::kInt4 ? 20 : 23);
}

constexpr int64_t kPlaneAlignment = 64;
constexpr int64_t kReadAhead = 256;  // bytes behind the end of x_q that matmul may read; their values do not matter
constexpr int kFloatDigits = 3;      // vectors of a token of floating-point activations

// The operands of matmul: `bytes` columns of n weight rows with m vectors.
struct Product {
  const int8_t* x_q;
  int64_t m;
  int64_t vector_stride;
  int64_t plane;  // from one plane of a vector to its next
  const uint8_t* w;
  int64_t n;
  int64_t row_stride;
  int64_t bytes;
  int32_t* acc;  // [m, n]
  int64_t acc_stride;
};

// What turns the int32 sums of one token and n rows into floats.
struct Sums {
  int32_t* acc;  // [digits, n]; zero points are subtracted in place
  int64_t acc_stride;
  int digits;             // 1 or kFloatDigits
  const int32_t* x_sums;  // [digits], the sums of the vectors
  int code_of_zero;
  const int8_t* zero_point;  // [n] at scale_stride, or null for 0
  float x_scale;
  const float* w_scale;
  int64_t scale_stride;  // 0 for one scale for all rows
};

// One position of some heads that share their keys and values.
struct Attention {
  const void* q;                    // [heads, head_dim], rows q_stride elements apart
  const void* keys;                 // [length, head_dim], rows key_stride apart
  const void* values;               // the same, value_stride apart
  int64_t heads, head_dim, length;  // heads up to kMaxHeads, head_dim up to kMaxHeadDim, length 1 or more
  int64_t q_stride, key_stride, value_stride;
  float scale;    // of the scores
  float* scores;  // [heads, length], overwritten
  void* y;        // [heads, head_dim], contiguous
};

// How `combine` changes y, value by value.
enum class Combination : int { kAdd, kMultiply, kMultiplySquaredRelu };  // y + x, y * x, relu(y)**2 * x

constexpr int64_t kMaxHeads = 8;
constexpr int64_t kMaxHeadDim = 256;

struct Kernel {
  const char* name;   // also the name of the Python kernel
  uint64_t required;  // bits of cpu_features.h, all needed
  int int8_zero;      // int8 codes as matmul takes them: weight + 128 as stored, or weight + 0 where dots are signed

  // acc[v][n] = sum over k of code[n][k] * x_q[v][k] modulo 2**32.
  void (*matmul)(Format format, const Product& product);

  // A row of base3 as two of 2bit, for the same x_q: the first four digits of each byte, [bytes], for planes 0 to 3;
  // and the fifth digits, [quarter], for plane 4 read as four planes `quarter` apart, at least bytes / 4. Codes behind
  // the end are 0.
  void (*base3_to_2bit)(const uint8_t* base3, int64_t bytes, uint8_t* first_four, uint8_t* fifth, int64_t quarter);

  // The bits of max(abs(x[0..k))), a float32 with its sign cleared. As integers NaN > Inf > every finite value, so one
  // comparison with 0x7f800000 afterwards tells whether the row is finite.
  uint32_t (*absmax_bits)(const void* x, Dtype dtype, int64_t k);

  // Quantizes x[0..k) to `digits` vectors, `planes` planes each: int8 rint(x * factor), or for three digits the 24-bit
  // number rint(x * factor) in signed digits of base 256, highest first. Half to even; abs(x * factor) must stay below
  // 2**23. Writes ceil(k / planes) bytes of every plane and the sum of each vector.
  void (*quantize)(const void* x, Dtype dtype, int64_t k, float factor, int digits, int planes, int8_t* x_q,
                   int64_t plane, int32_t* x_sums);

  // total[i] (+)= product[i] * (x_scale * w_scale[i]), where product is the sum over weights and activations that acc,
  // x_sums and the zeros of both say; three digits are put together in float32, highest first.
  void (*scale_sums)(const Sums& sums, int64_t n, bool add, float* total);

  // y[i] = total[i] * factor + bias[i], rounded to dtype. bias may be null.
  void (*write)(const float* total, int64_t n, float factor, const float* bias, void* y, Dtype dtype);

  // y[i] = x[i] * x[i] in float32, for x of dtype.
  void (*square)(const void* x, int64_t n, float* y, Dtype dtype);

  // y[i] = x[i] * factor * weight[i], all of dtype, multiplied in float32 from left to right.
  void (*normalize)(const void* x, const void* weight, int64_t n, float factor, void* y, Dtype dtype);

  // y[i] = y[i] combined with x[i], all of dtype, to which every result is rounded.
  void (*combine)(Combination combination, const void* x, int64_t n, void* y, Dtype dtype);

  // Rotary embedding of a head: y[i] = x[i] * cos[i] + x[(i + n / 2) % n] * sin[i], all of dtype, the first product
  // rounded to it. n is even.
  void (*rotate)(const void* x, const void* cos, const void* sin, int64_t n, void* y, Dtype dtype);

  // y = softmax(q @ keys.T * scale) @ values for each head, in float32.
  void (*attend)(const Attention& attention, Dtype dtype);

  // The sum of abs(w[0..k)) in float64, for training.
  double (*magnitude_sum)(const void* w, Dtype dtype, int64_t k);

  // Packs +1 where w[i] * factor > bound, -1 where it is below -bound, else 0, in 2bit or base3: ceil(k / P) bytes.
  void (*pack_ternary)(Format format, const void* w, Dtype dtype, int64_t k, float factor, float bound,
                       uint8_t* packed);
};

constexpr int code_of_zero(Format format, const Kernel& kernel) {
  return format == Format::kInt8 ? kernel.int8_zero : format == Format::kInt4 ? 8 : 1;
}

extern const Kernel kPortable;
#if defined(__x86_64__)
extern const Kernel kAvx2, kAvxVnni, kAvx512Vnni;
#elif defined(__aarch64__)
extern const Kernel kNeon, kNeonDotprod, kNeonI8mm;
#endif

}  // namespace bitlab::cpu
