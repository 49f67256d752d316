// AVX-512 VNNI. Compiled with its own flags (ISA_FLAGS in build_extensions.py): nothing here may run before
// dispatch.cpp has asked the CPU, so there is no static constructor, no STL, and nothing but the table has external
// linkage.
//
// One step takes 64 bytes of a weight row. One vector (GEMV), 2bit:
//
//     w & 0x03  =      u of weights 4i        vpdpbusd with plane 0 of x_q
//     w & 0x0c  =  4 * u of weights 4i + 1                plane 1
//     w & 0x30  = 16 * u of weights 4i + 2                plane 2
//     w & 0xc0  = 64 * u of weights 4i + 3                plane 3
//
// All four are legal u8 operands, so codes are masked and never shifted; every plane has its own accumulator, and the
// factors 4, 16, 64 leave the int32 sums at the end by exact arithmetic shifts. int4 does the same with 0x0f and 0xf0,
// int8 takes its bytes as they are.
//   Per 256 weights: 64 bytes, 1 load, 4 vpandd, 4 vpdpbusd (and 4 loads of x_q for 2 rows).
// The masks of a row are computed together, before its dots: interleaved one by one, on Zen 4 the masks take the two
// pipes of vpdpbusd half of the time (10.5 cycles for 8 + 8 instructions instead of 8).
//
// base3 (GEMV): r_0 is the byte, r_n+1 = 3 * r_n mod 256, and digit n is (3 * r_n - r_n+1) / 256. So the digits are
// never made: 256 * sum(digit * x) = 3 * sum(r_n * x) - sum(r_n+1 * x).
//   Per 320 weights: 64 bytes, 1 load, 10 vpaddb, 10 vpdpbusd.
//
// Up to 4 vectors (GEMM): 4 x 4 accumulators, one for all planes, so here codes are shifted to 0..2 (0..15).
//   Per 256 weights and 4 vectors (2bit): 4 loads, 3 vpsrlw, 4 vpandd, 16 vpdpbusd (and 4 loads of x_q).
//   GCC 12 keeps 16 accumulators in registers; with 6 vectors it spills and is 15 % slower.
//
// Prefetches are in the order of memory, a tile and some KiB ahead; less than a tile, and the beginnings of its last
// rows would be missed. Without them Zen 4 reads cold weights at a third of the speed: hardware prefetchers stop at the
// ends of pages. Far ones go to L2, because L1 has too few miss buffers to hide DRAM; near ones bring from L2 to L1
// what came. base3, which computes longer, is best with one into L1 alone, past L2 (prefetchnta): 5 % faster from DRAM
// than through L2, and not slower from L2 or L3. int8 with up to 3 vectors is bound by DRAM: 2 rows at a time read it
// 5 to 10 % faster than 4.
#include "cpu_features.h"
#include "kernel.h"
#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512VL__) || !defined(__AVX512VNNI__)
#error "kernel_avx512_vnni.cpp needs -mavx512f -mavx512bw -mavx512vl -mavx512vnni: see ISA_FLAGS in build_extensions.py"
#endif
#include <immintrin.h>

namespace bitlab::cpu {
namespace {

// Arrays of vectors stay in registers only where the loops over them are unrolled.
#define UNROLL _Pragma("GCC unroll 8")
#define INLINE __attribute__((always_inline)) inline

constexpr int64_t kStep = 64;  // bytes of one load

INLINE __m512i times_3(__m512i a) { return _mm512_add_epi8(_mm512_add_epi8(a, a), a); }

template <int kBits_>
struct BitFields {
  static constexpr int kBits = kBits_, kPlanes = 8 / kBits;
  __m512i bytes;
  INLINE __m512i next(int plane) {
    return _mm512_and_si512(_mm512_srli_epi16(bytes, kBits * plane), _mm512_set1_epi8((1 << kBits) - 1));
  }
};
using TwoBit = BitFields<2>;
using Int4 = BitFields<4>;
using Int8 = BitFields<8>;

struct Base3 {
  static constexpr int kPlanes = 5;
  __m512i rest;  // digit = floor(3 * rest / 256): 1 from 86 on, 2 from 171
  INLINE __m512i next(int) {
    const __m512i one = _mm512_maskz_mov_epi8(_mm512_cmpge_epu8_mask(rest, _mm512_set1_epi8(86)), _mm512_set1_epi8(1));
    const __mmask64 two = _mm512_cmpge_epu8_mask(rest, _mm512_set1_epi8(static_cast<char>(171)));
    rest = times_3(rest);
    return _mm512_mask_mov_epi8(one, two, _mm512_set1_epi8(2));
  }
};

// All of `values` are computed before anything that follows.
template <int kCount>
INLINE void compute_now(__m512i (&v)[kCount]) {
  if constexpr (kCount == 1) asm volatile("" : "+v"(v[0]));
  if constexpr (kCount == 2) asm volatile("" : "+v"(v[0]), "+v"(v[1]));
  if constexpr (kCount == 4) asm volatile("" : "+v"(v[0]), "+v"(v[1]), "+v"(v[2]), "+v"(v[3]));
  if constexpr (kCount == 5) asm volatile("" : "+v"(v[0]), "+v"(v[1]), "+v"(v[2]), "+v"(v[3]), "+v"(v[4]));
}

INLINE __m512i dot(__m512i sum, __m512i codes, __m512i x) { return _mm512_dpbusd_epi32(sum, codes, x); }

INLINE __m128i add_halves(__m512i a) {
  const __m256i halves = _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
}

// The sums of 4 vectors of 16 int32, as 4 int32.
INLINE __m128i sum_of_each(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  return add_halves(_mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd)));
}

template <int kRows>
INLINE void store_sums(const __m512i (&total)[kRows], int32_t* acc) {
  if constexpr (kRows == 4) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(acc), sum_of_each(total[0], total[1], total[2], total[3]));
  } else {
    UNROLL for (int r = 0; r < kRows; ++r)
      acc[r] = _mm512_reduce_add_epi32(total[r]);
  }
}

// Calls step(byte, load) for bytes begin..end; load(pointer) gives 64 bytes, zeros behind `end`.
template <class Step>
INLINE void for_each_step(int64_t begin, int64_t end, const Step& step) {
  int64_t byte = begin;
  for (; byte + kStep <= end; byte += kStep) step(byte, [](const uint8_t* p) { return _mm512_loadu_si512(p); });
  if (byte < end) {
    const __mmask64 tail = (__mmask64{1} << (end - byte)) - 1;
    step(byte, [tail](const uint8_t* p) { return _mm512_maskz_loadu_epi8(tail, p); });
  }
}

template <int kPlanes>
INLINE void load_planes(__m512i (&x)[kPlanes], const int8_t* x_q, int64_t plane) {
  UNROLL for (int j = 0; j < kPlanes; ++j)
    x[j] = _mm512_loadu_si512(x_q + j * plane);
  compute_now(x);  // into registers, once for all rows: as operands of the dots they would be loaded for every row
}

// What lies kAhead bytes behind `w`, the place in the next tile that is as far in as this step is in its own.
template <int64_t kAhead, _mm_hint kInto>
INLINE void prefetch(const uint8_t* w) {
  _mm_prefetch(reinterpret_cast<const char*>(w + kAhead), kInto);
}

// Far into L2, near into L1.
INLINE void prefetch_twice(const uint8_t* w) {
  prefetch<8192, _MM_HINT_T1>(w);
  prefetch<512, _MM_HINT_T0>(w);
}

template <class Codes, int kRows>
INLINE void gemv_bit_fields(const Product& p, const int8_t* x_q, const uint8_t* w, int32_t* acc) {
  constexpr int kPlanes = Codes::kPlanes;
  __m512i sum[kRows][kPlanes] = {};
  for_each_step(0, p.bytes, [&](int64_t byte, const auto& load_weights) __attribute__((always_inline)) {
    __m512i x[kPlanes];
    load_planes(x, x_q + byte, p.plane);
    UNROLL for (int r = 0; r < kRows; ++r) {
      const uint8_t* row = w + r * p.row_stride + byte;
      prefetch_twice(w + kRows * (p.row_stride + byte) + kStep * r);
      const __m512i bytes = load_weights(row);
      __m512i codes[kPlanes];
      UNROLL for (int j = 0; j < kPlanes; ++j) {
        const int mask = ((1 << Codes::kBits) - 1) << Codes::kBits * j;
        codes[j] = _mm512_and_si512(bytes, _mm512_set1_epi8(static_cast<char>(mask)));
      }
      compute_now(codes);
      UNROLL for (int j = 0; j < kPlanes; ++j)
        sum[r][j] = dot(sum[r][j], codes[j], x[j]);
      compute_now(sum[r]);
    }
  });
  __m512i total[kRows];
  UNROLL for (int r = 0; r < kRows; ++r) {
    total[r] = sum[r][0];
    UNROLL for (int j = 1; j < kPlanes; ++j) {
      total[r] = _mm512_add_epi32(total[r], _mm512_srai_epi32(sum[r][j], Codes::kBits * j));
    }
  }
  store_sums<kRows>(total, acc);
}

template <int kRows>
INLINE void gemv_base3(const Product& p, const int8_t* x_q, const uint8_t* w, int32_t* acc) {
  // 256 * sum(digit * x) grows by at most 256 * 2 * 128 * 20 a lane and step; after 1024 steps, 1.34e9, it is taken.
  constexpr int64_t kBlock = 1024 * kStep;
  __m512i total[kRows] = {};
  for (int64_t begin = 0; begin < p.bytes; begin += kBlock) {
    // sum[0] and [2] hold sum(r_n * x), [1] and [3] sum(r_n+1 * x): two each, because a dot waits for the one before.
    __m512i sum[kRows][4] = {};
    for_each_step(begin, p.bytes - begin < kBlock ? p.bytes : begin + kBlock,
                  [&](int64_t byte, const auto& load_weights) __attribute__((always_inline)) {
                    __m512i x[5];
                    load_planes(x, x_q + byte, p.plane);
                    UNROLL for (int r = 0; r < kRows; ++r) {
                      const uint8_t* row = w + r * p.row_stride + byte;
                      prefetch<1024, _MM_HINT_NTA>(w + kRows * (p.row_stride + byte) + kStep * r);
                      const __m512i bytes = load_weights(row);
                      __m512i rest[5];
                      rest[0] = times_3(bytes);
                      UNROLL for (int j = 1; j < 5; ++j)
                        rest[j] = times_3(rest[j - 1]);
                      compute_now(rest);
                      UNROLL for (int j = 0; j < 5; ++j) {
                        sum[r][j % 2 * 2] = dot(sum[r][j % 2 * 2], j == 0 ? bytes : rest[j - 1], x[j]);
                        sum[r][j % 2 * 2 + 1] = dot(sum[r][j % 2 * 2 + 1], rest[j], x[j]);
                      }
                      compute_now(sum[r]);
                    }
                  });
    UNROLL for (int r = 0; r < kRows; ++r) {
      const __m512i first = _mm512_add_epi32(sum[r][0], sum[r][2]), next = _mm512_add_epi32(sum[r][1], sum[r][3]);
      const __m512i three = _mm512_add_epi32(_mm512_add_epi32(first, first), first);
      total[r] = _mm512_add_epi32(total[r], _mm512_srai_epi32(_mm512_sub_epi32(three, next), 8));
    }
  }
  store_sums<kRows>(total, acc);
}

template <class Codes, int kVectors, int kRows>
INLINE void gemm(const Product& p, const int8_t* x_q, const uint8_t* w, int32_t* acc) {
  __m512i sum[kVectors][kRows] = {};
  for_each_step(0, p.bytes, [&](int64_t byte, const auto& load_weights) __attribute__((always_inline)) {
    Codes decoder[kRows];
    UNROLL for (int r = 0; r < kRows; ++r) {
      const uint8_t* next = w + kRows * (p.row_stride + byte) + kStep * r;
      kVectors < 4 ? prefetch_twice(next) : prefetch<6144, _MM_HINT_T1>(next);
      decoder[r] = {load_weights(w + r * p.row_stride + byte)};
    }
    UNROLL for (int j = 0; j < Codes::kPlanes; ++j) {
      __m512i codes[kRows];
      UNROLL for (int r = 0; r < kRows; ++r)
        codes[r] = decoder[r].next(j);
      compute_now(codes);
      UNROLL for (int v = 0; v < kVectors; ++v) {
        const __m512i x = _mm512_loadu_si512(x_q + v * p.vector_stride + j * p.plane + byte);
        UNROLL for (int r = 0; r < kRows; ++r)
          sum[v][r] = dot(sum[v][r], codes[r], x);
      }
    }
  });
  UNROLL for (int v = 0; v < kVectors; ++v)
    store_sums<kRows>(sum[v], acc + v * p.acc_stride);
}

template <class Codes>
constexpr int rows_at_once(int vectors) {
  return Codes::kPlanes == Int8::kPlanes && vectors < 4 ? 2 : 4;
}

template <class Codes, int kVectors, int kRows>
INLINE void multiply(const Product& p, const int8_t* x_q, const uint8_t* w, int32_t* acc) {
  if constexpr (kVectors > 1) {
    gemm<Codes, kVectors, kRows>(p, x_q, w, acc);
  } else if constexpr (Codes::kPlanes == Base3::kPlanes) {
    gemv_base3<kRows>(p, x_q, w, acc);
  } else {
    gemv_bit_fields<Codes, kRows>(p, x_q, w, acc);
  }
}

constexpr uint64_t kRequired = kFeatureAvx512f | kFeatureAvx512bw | kFeatureAvx512vl | kFeatureAvx512Vnni;

}  // namespace
}  // namespace bitlab::cpu

#include "tiles.h"
#include "whole_kernel.h"

namespace bitlab::cpu {

constinit const Kernel kAvx512Vnni = whole_kernel("avx512_vnni", kRequired, 128);

}  // namespace bitlab::cpu
