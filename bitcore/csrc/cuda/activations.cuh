// Quantization of activations, as bitcore.quantizers.quantize_activations defines it, and of floating-point activations
// to three int8 digits (docs/numerics.md): x is about q * scale, where q = round(x * factor) has 8 or 24 bits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "fragments.cuh"
#include "outputs.h"

namespace bitlab::cuda {

__device__ __forceinline__ float load_float(const void* x, Dtype dtype, int64_t i) {
  if (dtype == Dtype::kFloat32) return static_cast<const float*>(x)[i];
  if (dtype == Dtype::kBFloat16) return __bfloat162float(static_cast<const __nv_bfloat16*>(x)[i]);
  return __half2float(static_cast<const __half*>(x)[i]);
}

__device__ __forceinline__ void store_float(void* y, Dtype dtype, int64_t i, float value) {
  if (dtype == Dtype::kFloat32) {
    static_cast<float*>(y)[i] = value;
  } else if (dtype == Dtype::kBFloat16) {
    static_cast<__nv_bfloat16*>(y)[i] = __float2bfloat16_rn(value);
  } else {
    static_cast<__half*>(y)[i] = __float2half_rn(value);
  }
}

// The first `count` of four neighbours from element i.
__device__ __forceinline__ void store_floats(void* y, Dtype dtype, int64_t i, const float (&values)[4], int count) {
  if (dtype == Dtype::kFloat32) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (j < count) static_cast<float*>(y)[i + j] = values[j];
  } else {
    auto* to = static_cast<uint16_t*>(y) + i;
    uint2 pairs;
    if (dtype == Dtype::kBFloat16) {
      const __nv_bfloat162 low = __floats2bfloat162_rn(values[0], values[1]);
      const __nv_bfloat162 high = __floats2bfloat162_rn(values[2], values[3]);
      pairs = {*reinterpret_cast<const uint32_t*>(&low), *reinterpret_cast<const uint32_t*>(&high)};
    } else {
      const __half2 low = __floats2half2_rn(values[0], values[1]), high = __floats2half2_rn(values[2], values[3]);
      pairs = {*reinterpret_cast<const uint32_t*>(&low), *reinterpret_cast<const uint32_t*>(&high)};
    }
    if (count == 4 && reinterpret_cast<uintptr_t>(to) % 8 == 0) {
      *reinterpret_cast<uint2*>(to) = pairs;
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (j < count) to[j] = static_cast<uint16_t>((j < 2 ? pairs.x : pairs.y) >> j % 2 * 16);
    }
  }
}

// kCount neighbours of two bytes from element k0 of a 16-byte aligned row, or zeros.
template <int kCount>
__device__ __forceinline__ void load_pairs(const void* row, int64_t k0, bool live, uint32_t (&pairs)[kCount / 2]) {
  using Vector = std::conditional_t<kCount % 8 == 0, uint4, uint2>;  // base3: 20 values, 40 bytes
  constexpr int kWords = sizeof(Vector) / 4;
  const Vector* from = reinterpret_cast<const Vector*>(static_cast<const uint16_t*>(row) + k0);
#pragma unroll
  for (int i = 0; i < kCount / 2 / kWords; ++i) {
    Vector v = {};
    if (live) v = from[i];
    pairs[kWords * i] = v.x, pairs[kWords * i + 1] = v.y;
    if constexpr (kWords == 4) pairs[4 * i + 2] = v.z, pairs[4 * i + 3] = v.w;
  }
}

template <int kCount>
__device__ __forceinline__ void to_floats(const uint32_t (&pairs)[kCount / 2], Dtype dtype, float (&values)[kCount]) {
  if (dtype == Dtype::kBFloat16) {
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i)
      values[2 * i] = __uint_as_float(pairs[i] << 16), values[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
  } else {
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const float2 v = __half22float2(*reinterpret_cast<const __half2*>(&pairs[i]));
      values[2 * i] = v.x, values[2 * i + 1] = v.y;
    }
  }
}

// kCount neighbours from element k0 of a row of k; behind its end zeros.
template <int kCount>
__device__ __forceinline__ void load_row(const void* row, Dtype dtype, int64_t k, int64_t k0, bool aligned,
                                         float (&values)[kCount]) {
  if (aligned && k0 + kCount <= k) {
    if (dtype == Dtype::kFloat32) {
      const float4* from = reinterpret_cast<const float4*>(static_cast<const float*>(row) + k0);
#pragma unroll
      for (int i = 0; i < kCount / 4; ++i) {
        const float4 v = from[i];
        values[4 * i] = v.x, values[4 * i + 1] = v.y, values[4 * i + 2] = v.z, values[4 * i + 3] = v.w;
      }
    } else {
      uint32_t pairs[kCount / 2];
      load_pairs<kCount>(row, k0, true, pairs);
      to_floats<kCount>(pairs, dtype, values);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = k0 + i < k ? load_float(row, dtype, k0 + i) : 0.0f;
  }
}

__host__ __device__ __forceinline__ bool is_aligned_for_rows(const void* x, Dtype dtype, int64_t x_stride) {
  const int64_t size = dtype == Dtype::kFloat32 ? 4 : 2;
  return (reinterpret_cast<uintptr_t>(x) | static_cast<uintptr_t>(x_stride * size)) % 16 == 0;
}

// As integers NaN > Inf > every finite value, so one comparison afterwards tells whether a row is finite.
template <int kCount>
__device__ __forceinline__ uint32_t absmax_bits(const float (&values)[kCount]) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) largest = max(largest, __float_as_uint(values[i]) & 0x7fffffffu);
  return largest;
}

// The same of pairs of bfloat16 or float16, whose bits have the same order.
template <int kPairs>
__device__ __forceinline__ uint32_t absmax_bits(const uint32_t (&pairs)[kPairs], Dtype dtype) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) largest = __vmaxu2(largest, pairs[i] & 0x7fff7fffu);
  const uint32_t bits = max(largest & 0xffffu, largest >> 16);
  if (dtype == Dtype::kBFloat16) return bits << 16;
  return __float_as_uint(__half2float(__ushort_as_half(static_cast<uint16_t>(bits)))) & 0x7fffffffu;
}

__device__ __forceinline__ uint32_t warp_max(uint32_t value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xffffffffu, value);
#else
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value = max(value, __shfl_xor_sync(0xffffffffu, value, lane));
  return value;
#endif
}

__device__ __forceinline__ int warp_sum(int value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_add_sync(0xffffffffu, value);
#else
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
#endif
}

// sum + the four int8 of `bytes`.
__device__ __forceinline__ int dot(uint32_t bytes, int sum) { return __dp4a(static_cast<int>(bytes), 0x01010101, sum); }

struct Quantizer {
  float factor;  // of x; 0 for a row that is not finite
  bool finite;
};

__device__ __forceinline__ bool is_finite(uint32_t absmax_bits) { return absmax_bits < 0x7f800000u; }

__device__ __forceinline__ Quantizer quantizer_of(uint32_t absmax_bits, int digits) {
  const float absmax = __uint_as_float(absmax_bits);
  const float factor = digits == 1 ? __fmul_rn(__frcp_rn(fmaxf(absmax, 1e-5f)), 127.0f)
                                   : __fdiv_rn(127.0f * 65536.0f, fmaxf(absmax, 1e-30f));
  const bool finite = is_finite(absmax_bits);
  return {finite ? factor : 0.0f, finite};
}

// Of q; NaN for a row that is not finite.
__device__ __forceinline__ float scale_of(uint32_t absmax_bits, int digits) {
  if (!is_finite(absmax_bits)) return __uint_as_float(0x7fc00000u);
  const float absmax = __uint_as_float(absmax_bits);
  return digits == 1 ? __fdiv_rn(fmaxf(absmax, 1e-5f), 127.0f) : __fdiv_rn(fmaxf(absmax, 1e-30f), 127.0f * 65536.0f);
}

// The 4P values of a word's share of K, as the words of P registers: byte b of words[d][i] is digit d of value P * b +
// i. Adds the digits to sums.
template <int kPerByte, int kDigits>
__device__ __forceinline__ void quantize_share(const float (&values)[4 * kPerByte], const Quantizer& quantizer,
                                               uint32_t (&words)[kDigits][kPerByte], int (&sums)[kDigits]) {
  const uint32_t keep = quantizer.finite ? 0xffffffffu : 0;
#pragma unroll
  for (int i = 0; i < kPerByte; ++i) {
    uint32_t q[4];
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const float scaled = __fmul_rn(values[kPerByte * b + i], quantizer.factor);
      if constexpr (kDigits == 1) {
        q[b] = __float_as_uint(__fadd_rn(scaled, 0x1.8p23f));  // rounds half to even, the integer in the low bits
      } else {
        q[b] = static_cast<uint32_t>(__float2int_rn(scaled)) + 0x8080;  // makes the lower digits bytes 0..255
      }
    }
    // The same byte of the four.
    const auto bytes = [&q](uint32_t byte) {
      const uint32_t selector = byte | (byte + 4) << 4;
      return __byte_perm(__byte_perm(q[0], q[1], selector), __byte_perm(q[2], q[3], selector), 0x5410);
    };
    if constexpr (kDigits == 1) {
      words[0][i] = bytes(0) & keep;
    } else {
      words[0][i] = bytes(2) & keep;
      words[1][i] = (bytes(1) ^ 0x80808080u) & keep;  // -128..127
      words[2][i] = (bytes(0) ^ 0x80808080u) & keep;
    }
#pragma unroll
    for (int d = 0; d < kDigits; ++d) sums[d] = dot(words[d][i], sums[d]);
  }
}

// Four lanes t = 0..3 each have a word for each of four pieces of 16 bytes: lane t gets all words of piece t.
__device__ __forceinline__ uint4 exchange_words(const uint32_t (&of_pieces)[4]) {
  const bool odd = threadIdx.x % 2 == 1, high = threadIdx.x / 2 % 2 == 1;
  const auto take_turns = [](bool second, int distance, uint32_t& a, uint32_t& b) {  // b of one lane for a of the other
    const uint32_t other = __shfl_xor_sync(0xffffffffu, second ? a : b, distance);
    (second ? a : b) = other;
  };
  uint32_t v[4] = {of_pieces[0], of_pieces[1], of_pieces[2], of_pieces[3]};
  take_turns(odd, 1, v[0], v[1]);
  take_turns(odd, 1, v[2], v[3]);
  take_turns(high, 2, v[0], v[2]);
  take_turns(high, 2, v[1], v[3]);
  return {v[0], v[1], v[2], v[3]};
}

// The factor that a column's sums of codes * q exceed those of weights * q by: sum(q) times this.
__device__ __forceinline__ int zero_of(const Weight& weight, Format format, int64_t n, int64_t group) {
  const int zero_point = weight.zero_point == nullptr ? 0 : weight.zero_point[n * weight.scale_stride + group];
  return code_of_zero(format) + zero_point;
}

// float32 of the exact product: one sum, or three digits put together, highest first.
__device__ __forceinline__ float product_of(const int* sums, int digits) {
  if (digits == 1) return static_cast<float>(sums[0]);
  const float high = __fadd_rn(__fmul_rn(static_cast<float>(sums[0]), 256.0f), static_cast<float>(sums[1]));
  return __fadd_rn(__fmul_rn(high, 256.0f), static_cast<float>(sums[2]));
}

__device__ __forceinline__ float with_bias(float value, const Weight& weight, int64_t n) {
  return weight.bias == nullptr ? value : __fadd_rn(value, load_float(weight.bias, weight.bias_dtype, n));
}

// A row of a weight whose outputs a thread writes: what it needs is asked for before there are sums.
struct OutputRow {
  const Weight& weight;
  int64_t n;
  float scale;
  int zero;

  __device__ __forceinline__ OutputRow(const Weight& weight, Format format, int64_t n, bool live)
      : weight(weight), n(n) {
    if (!live) return;
    scale = weight.scale[n * weight.scale_stride];
    zero = zero_of(weight, format, n, 0);
  }

  // `sums` of a token's digits, as product_of takes them.
  template <Outputs kOutputs = Outputs::kAny>
  __device__ __forceinline__ void write(Dtype dtype, int64_t token, const int* sums, int digits,
                                        float token_scale) const {
    const float value = __fmul_rn(product_of(sums, digits), __fmul_rn(token_scale, scale));
    const int64_t i = token * weight.n + n;
    if constexpr (kOutputs == Outputs::kAny) {
      store_float(weight.y, dtype, i, with_bias(value, weight, n));
    } else {
      store_float(weight.y, kOutputs == Outputs::kBFloat16 ? Dtype::kBFloat16 : Dtype::kFloat16, i, value);
    }
  }
};

}  // namespace bitlab::cuda
