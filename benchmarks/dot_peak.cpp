// The most int8 dot products this CPU does: the dot instruction of each kernel on 12 independent registers, no memory.
// Built and called by machine_limits.py; every function returns the operations (2 a product) it did.
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define UNROLL _Pragma("GCC unroll 12")

namespace {

constexpr int kAccumulators = 12;

// The asm keeps the compiler from seeing that nothing is done with the sums.
#define PEAK(Vector, zero, KEEP, dot)                \
  Vector sum[kAccumulators], a = zero, b = zero;     \
  UNROLL for (int i = 0; i < kAccumulators; ++i)     \
    sum[i] = zero;                                   \
  asm volatile("" : KEEP(a), KEEP(b));               \
  for (int64_t n = 0; n < rounds; ++n) {             \
    UNROLL for (int i = 0; i < kAccumulators; ++i) { \
      sum[i] = dot(sum[i], a, b);                    \
      asm volatile("" : KEEP(sum[i]), KEEP(a));      \
    }                                                \
  }                                                  \
  return 2 * rounds * kAccumulators * static_cast<int64_t>(sizeof(Vector));

}  // namespace

extern "C" {

#if defined(__x86_64__)
#define KEEP_X86(v) "+v"(v)
__attribute__((target("avx512f,avx512vnni"))) int64_t peak_avx512_vnni(int64_t rounds){
    PEAK(__m512i, _mm512_setzero_si512(), KEEP_X86, _mm512_dpbusd_epi32)}

#define KEEP_AVX(v) "+x"(v)
__attribute__((target("avx2,avxvnni"))) int64_t
    peak_avx_vnni(int64_t rounds){PEAK(__m256i, _mm256_setzero_si256(), KEEP_AVX, _mm256_dpbusd_avx_epi32)}

// vpmaddubsw and the vpaddw that it needs.
#define DOT_AVX2(sum, a, b) _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, b))
__attribute__((target("avx2"))) int64_t
    peak_avx2(int64_t rounds){PEAK(__m256i, _mm256_setzero_si256(), KEEP_AVX, DOT_AVX2)}
#elif defined(__aarch64__)
#define KEEP_NEON(v) "+w"(v)
__attribute__((target("arch=armv8.2-a+dotprod"))) int64_t peak_neon_dotprod(int64_t rounds) {
#define DOT_NEON(sum, a, b) vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b))
  PEAK(int32x4_t, vdupq_n_s32(0), KEEP_NEON, DOT_NEON)
}
#endif

}  // extern "C"
