// AVX-512 VNNI. Compiled with its own flags (ISA_FLAGS in build_extensions.py): nothing here may run before
// dispatch.cpp has asked the CPU, so there is no static constructor, no STL, and nothing but the table has external
// linkage.
//
// One step takes 64 bytes of a weight row, 256 weights:
//
//     w & 0x03  =      u of weights 4i        vpdpbusd with plane 0 of x_q
//     w & 0x0c  =  4 * u of weights 4i + 1                plane 1
//     w & 0x30  = 16 * u of weights 4i + 2                plane 2
//     w & 0xc0  = 64 * u of weights 4i + 3                plane 3
//
// All four are legal u8 operands, so codes are masked and never shifted; the factors 4, 16, 64 leave the int32 sums at
// the end by exact arithmetic shifts. A lane of plane 3 holds at most K/64 products of 128 * 128: exact for K <= 2**23.
//
// matmul of one token (GEMV): 2 rows x 4 planes of accumulators, as many as hide the latency of vpdpbusd; 4 rows are no
// faster, and 20 % slower at K = 4096, where rows and planes are 1 KiB apart and fall into the same sets of L1.
//   Bytes per weight: 1/4. Instructions per 256 weights: 1 load, 4 vpandd, 4 vpdpbusd (and 2 loads of x_q).
// matmul of up to 4 tokens (GEMM): 4 x 4 accumulators, one for all planes, so here codes are shifted: (w >> 2j) & 3.
//   Instructions per 256 weights and 4 tokens: 4 loads, 3 vpsrlw, 4 vpandd, 16 vpdpbusd (and 4 loads of x_q).
//   GCC 12 keeps 16 accumulators in registers; with 6 tokens it spills and is 15 % slower.
#include "cpu_features.h"
#include "kernel.h"
#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512VL__) || !defined(__AVX512VNNI__)
#error "kernel_avx512_vnni.cpp needs -mavx512f -mavx512bw -mavx512vl -mavx512vnni: see ISA_FLAGS in build_extensions.py"
#endif
#include <immintrin.h>

namespace bitlab::cpu {
namespace {

constexpr int64_t kStep = 64;       // bytes of one load
constexpr int64_t kShortRow = 256;  // bytes: up to here adding up the lanes, cheapest for 4 rows, is what gemv costs

// Arrays of vectors stay in registers only where the loops over them are unrolled.
#define UNROLL _Pragma("GCC unroll 8")

__mmask16 first_lanes(int64_t count) { return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1); }
__mmask64 first_bytes(int64_t count) { return count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1; }

template <Dtype dtype>
__m512 load(const void* x, int64_t index, __mmask16 lanes) {
  if constexpr (dtype == Dtype::kFloat32) {
    return _mm512_maskz_loadu_ps(lanes, static_cast<const float*>(x) + index);
  } else {
    const __m256i half = _mm256_maskz_loadu_epi16(lanes, static_cast<const uint16_t*>(x) + index);
    if constexpr (dtype == Dtype::kFloat16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
}

// float32 to bfloat16, to nearest even. Adding 0x7fff and the kept lowest bit carries into the upper half exactly when
// rounding up.
__m256i to_bfloat16(__m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0)));
}

template <Dtype dtype>
void store_lanes(void* y, int64_t index, __mmask16 lanes, __m512 value) {
  if constexpr (dtype == Dtype::kFloat32) {
    _mm512_mask_storeu_ps(static_cast<float*>(y) + index, lanes, value);
  } else {
    const __m256i half =
        dtype == Dtype::kBFloat16 ? to_bfloat16(value) : _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(y) + index, lanes, half);
  }
}

template <Dtype dtype>
uint32_t absmax_bits_of(const void* x, int64_t k) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i largest0 = _mm512_setzero_si512(), largest1 = largest0, largest2 = largest0, largest3 = largest0;
  int64_t i = 0;
  for (; i + 64 <= k; i += 64) {
    largest0 = _mm512_max_epu32(largest0, _mm512_and_si512(magnitude, _mm512_castps_si512(load<dtype>(x, i, 0xffff))));
    largest1 =
        _mm512_max_epu32(largest1, _mm512_and_si512(magnitude, _mm512_castps_si512(load<dtype>(x, i + 16, 0xffff))));
    largest2 =
        _mm512_max_epu32(largest2, _mm512_and_si512(magnitude, _mm512_castps_si512(load<dtype>(x, i + 32, 0xffff))));
    largest3 =
        _mm512_max_epu32(largest3, _mm512_and_si512(magnitude, _mm512_castps_si512(load<dtype>(x, i + 48, 0xffff))));
  }
  for (; i < k; i += 16) {
    const __m512 value = load<dtype>(x, i, first_lanes(k - i));
    largest0 = _mm512_max_epu32(largest0, _mm512_and_si512(magnitude, _mm512_castps_si512(value)));
  }
  return _mm512_reduce_max_epu32(
      _mm512_max_epu32(_mm512_max_epu32(largest0, largest1), _mm512_max_epu32(largest2, largest3)));
}

// 16 activations as int8, in order.
template <Dtype dtype>
__m128i quantize_16(const void* x, int64_t index, __mmask16 lanes, __m512 inverse_scale) {
  return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(load<dtype>(x, index, lanes), inverse_scale)));
}

// Transposes 16 groups of 4 bytes to 4 groups of 16: byte 4i + j goes to byte 16j + i.
__m512i deinterleave_by_4(__m512i bytes) {
  const __m512i within_lanes =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m512i across_lanes = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(across_lanes, _mm512_shuffle_epi8(bytes, within_lanes));
}

template <Dtype dtype>
int32_t quantize_of(const void* x, int64_t k, float inverse_scale, int8_t* x_q, int64_t plane) {
  const __m512 factor = _mm512_set1_ps(inverse_scale);
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sum = _mm512_setzero_si512();
  int64_t i = 0;
  for (int64_t byte = 0; byte < plane; byte += 16, i += 64) {
    __m512i q = _mm512_setzero_si512();
    if (i < k) {
      const int64_t left = k - i;
      q = _mm512_castsi128_si512(quantize_16<dtype>(x, i, first_lanes(left), factor));
      if (left > 16) q = _mm512_inserti32x4(q, quantize_16<dtype>(x, i + 16, first_lanes(left - 16), factor), 1);
      if (left > 32) q = _mm512_inserti32x4(q, quantize_16<dtype>(x, i + 32, first_lanes(left - 32), factor), 2);
      if (left > 48) q = _mm512_inserti32x4(q, quantize_16<dtype>(x, i + 48, first_lanes(left - 48), factor), 3);
      q = _mm512_maskz_mov_epi8(first_bytes(left), q);
      sum = _mm512_dpbusd_epi32(sum, ones, q);
      q = deinterleave_by_4(q);
    }
    _mm_store_si128(reinterpret_cast<__m128i*>(x_q + byte), _mm512_castsi512_si128(q));
    _mm_store_si128(reinterpret_cast<__m128i*>(x_q + plane + byte), _mm512_extracti32x4_epi32(q, 1));
    _mm_store_si128(reinterpret_cast<__m128i*>(x_q + 2 * plane + byte), _mm512_extracti32x4_epi32(q, 2));
    _mm_store_si128(reinterpret_cast<__m128i*>(x_q + 3 * plane + byte), _mm512_extracti32x4_epi32(q, 3));
  }
  return _mm512_reduce_add_epi32(sum);
}

__m128i add_lanes(__m512i a) {
  const __m256i halves = _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
}

// The sums of 4 vectors of 16 int32, as 4 int32.
__m128i sum_of_each(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  return add_lanes(_mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd)));
}

template <int kRows>
void store_sums(const __m512i* total, int32_t* acc) {
  if constexpr (kRows == 4) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(acc), sum_of_each(total[0], total[1], total[2], total[3]));
  } else {
    for (int r = 0; r < kRows; ++r) acc[r] = _mm512_reduce_add_epi32(total[r]);
  }
}

// One step of gemv: 64 bytes of kRows rows with all 4 planes of the token.
template <int kRows, class Load>
__attribute__((always_inline)) inline void gemv_step(__m512i (&sum)[kRows][4], const int8_t* x_q, int64_t plane,
                                                     const uint8_t* w, int64_t row_bytes, const Load& load_weights) {
  constexpr int64_t kPrefetchBytes = 4096;  // ahead: hardware prefetchers stop at the ends of pages
  const __m512i x0 = _mm512_load_si512(x_q), x1 = _mm512_load_si512(x_q + plane);
  const __m512i x2 = _mm512_load_si512(x_q + 2 * plane), x3 = _mm512_load_si512(x_q + 3 * plane);
  UNROLL for (int r = 0; r < kRows; ++r) {
    _mm_prefetch(reinterpret_cast<const char*>(w + r * row_bytes + kPrefetchBytes), _MM_HINT_T0);
    const __m512i codes = load_weights(w + r * row_bytes);
    sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], _mm512_and_si512(codes, _mm512_set1_epi8(0x03)), x0);
    sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], _mm512_and_si512(codes, _mm512_set1_epi8(0x0c)), x1);
    sum[r][2] = _mm512_dpbusd_epi32(sum[r][2], _mm512_and_si512(codes, _mm512_set1_epi8(0x30)), x2);
    sum[r][3] = _mm512_dpbusd_epi32(sum[r][3], _mm512_and_si512(codes, _mm512_set1_epi8(static_cast<char>(0xc0))), x3);
  }
}

// One token, kRows weight rows.
template <int kRows>
void gemv(const int8_t* x_q, int64_t plane, const uint8_t* w, int64_t row_bytes, int32_t* acc) {
  __m512i sum[kRows][4] = {};
  int64_t byte = 0;
  for (; byte + kStep <= row_bytes; byte += kStep) {
    gemv_step<kRows>(sum, x_q + byte, plane, w + byte, row_bytes,
                     [](const uint8_t* p) { return _mm512_loadu_si512(p); });
  }
  if (byte < row_bytes) {
    const __mmask64 tail = first_bytes(row_bytes - byte);
    gemv_step<kRows>(sum, x_q + byte, plane, w + byte, row_bytes,
                     [tail](const uint8_t* p) { return _mm512_maskz_loadu_epi8(tail, p); });
  }
  __m512i total[kRows];
  UNROLL for (int r = 0; r < kRows; ++r) {
    const __m512i low = _mm512_add_epi32(sum[r][0], _mm512_srai_epi32(sum[r][1], 2));
    const __m512i high = _mm512_add_epi32(_mm512_srai_epi32(sum[r][2], 4), _mm512_srai_epi32(sum[r][3], 6));
    total[r] = _mm512_add_epi32(low, high);
  }
  store_sums<kRows>(total, acc);
}

// One step of gemm: 64 bytes of kRows rows with all 4 planes of kTokens tokens.
template <int kTokens, int kRows, class Load>
__attribute__((always_inline)) inline void gemm_step(__m512i (&sum)[kTokens][kRows], const int8_t* x_q, int64_t plane,
                                                     const uint8_t* w, int64_t row_bytes, __m512i mask,
                                                     const Load& load_weights) {
  UNROLL for (int j = 0; j < 4; ++j) {
    __m512i codes[kRows];
    UNROLL for (int r = 0; r < kRows; ++r)
      codes[r] = _mm512_and_si512(_mm512_srli_epi16(load_weights(w + r * row_bytes), 2 * j), mask);
    UNROLL for (int t = 0; t < kTokens; ++t) {
      const __m512i x = _mm512_load_si512(x_q + (4 * t + j) * plane);
      UNROLL for (int r = 0; r < kRows; ++r)
        sum[t][r] = _mm512_dpbusd_epi32(sum[t][r], codes[r], x);
    }
  }
}

template <int kTokens, int kRows>
void gemm(const int8_t* x_q, int64_t plane, const uint8_t* w, int64_t row_bytes, int32_t* acc, int64_t acc_stride) {
  const __m512i mask = _mm512_set1_epi8(3);
  __m512i sum[kTokens][kRows] = {};
  int64_t byte = 0;
  for (; byte + kStep <= row_bytes; byte += kStep) {
    gemm_step<kTokens, kRows>(sum, x_q + byte, plane, w + byte, row_bytes, mask,
                              [](const uint8_t* p) { return _mm512_loadu_si512(p); });
  }
  if (byte < row_bytes) {
    const __mmask64 tail = first_bytes(row_bytes - byte);
    gemm_step<kTokens, kRows>(sum, x_q + byte, plane, w + byte, row_bytes, mask,
                              [tail](const uint8_t* p) { return _mm512_maskz_loadu_epi8(tail, p); });
  }
  UNROLL for (int t = 0; t < kTokens; ++t)
    store_sums<kRows>(sum[t], acc + t * acc_stride);
}

template <int kRows>
void tile(const int8_t* x_q, int64_t m, int64_t plane, const uint8_t* w, int64_t row_bytes, int32_t* acc,
          int64_t acc_stride) {
  switch (m) {
    case 1: return gemv<kRows>(x_q, plane, w, row_bytes, acc);
    case 2: return gemm<2, kRows>(x_q, plane, w, row_bytes, acc, acc_stride);
    case 3: return gemm<3, kRows>(x_q, plane, w, row_bytes, acc, acc_stride);
    default: return gemm<4, kRows>(x_q, plane, w, row_bytes, acc, acc_stride);
  }
}

void matmul(const int8_t* x_q, int64_t m, int64_t plane, const uint8_t* w, int64_t n, int64_t row_bytes, int32_t* acc,
            int64_t acc_stride) {
  int64_t row = 0;
  if (m == 1 && row_bytes > kShortRow) {
    for (; row + 2 <= n; row += 2) gemv<2>(x_q, plane, w + row * row_bytes, row_bytes, acc + row);
  } else {
    for (; row + 4 <= n; row += 4) tile<4>(x_q, m, plane, w + row * row_bytes, row_bytes, acc + row, acc_stride);
  }
  for (; row < n; ++row) tile<1>(x_q, m, plane, w + row * row_bytes, row_bytes, acc + row, acc_stride);
}

template <Dtype dtype>
void store_of(const int32_t* acc, int64_t n, int32_t x_sum, float x_scale, const float* w_scale, int64_t w_scale_step,
              const float* bias, void* y) {
  const __m512i sum = _mm512_set1_epi32(x_sum);
  const __m512 token_scale = _mm512_set1_ps(x_scale);
  const __m512 tensor_scale = _mm512_set1_ps(x_scale * w_scale[0]);
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 lanes = first_lanes(n - i);
    const __m512 product = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_maskz_loadu_epi32(lanes, acc + i), sum));
    const __m512 scale =
        w_scale_step == 0 ? tensor_scale : _mm512_mul_ps(token_scale, _mm512_maskz_loadu_ps(lanes, w_scale + i));
    __m512 value = _mm512_mul_ps(product, scale);
    if (bias != nullptr) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(lanes, bias + i));
    store_lanes<dtype>(y, i, lanes, value);
  }
}

}  // namespace
}  // namespace bitlab::cpu

#include "by_dtype.h"

namespace bitlab::cpu {
namespace {

constexpr uint64_t kRequired = kFeatureAvx512f | kFeatureAvx512bw | kFeatureAvx512vl | kFeatureAvx512Vnni;

}  // namespace

constinit const Kernel kAvx512Vnni{"avx512_vnni", kRequired, 4, absmax_bits, quantize, matmul, store};

}  // namespace bitlab::cpu
