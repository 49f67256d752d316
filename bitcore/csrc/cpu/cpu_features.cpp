#include "cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace bitlab::cpu {
namespace {

#if defined(__x86_64__)

bool has(uint32_t word, int bit) { return (word >> bit & 1) != 0; }

// XCR0: bit 1 SSE state, 2 AVX state, 5-7 AVX-512 state (Intel SDM volume 1, section 13.3).
uint64_t saved_register_states() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

uint64_t detect() {
  constexpr uint64_t kAvxState = 0x06;
  constexpr uint64_t kAvx512State = 0xe6;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, 27)) return 0;  // bit 27: OSXSAVE
  const uint64_t saved = saved_register_states();
  if ((saved & kAvxState) != kAvxState) return 0;
  uint64_t features = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
  if (has(b, 5)) features |= kFeatureAvx2;
  if ((saved & kAvx512State) == kAvx512State) {
    if (has(b, 16)) features |= kFeatureAvx512f;
    if (has(b, 30)) features |= kFeatureAvx512bw;
    if (has(b, 31)) features |= kFeatureAvx512vl;
    if (has(c, 11)) features |= kFeatureAvx512Vnni;
  }
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && has(a, 4)) features |= kFeatureAvxVnni;
  return features;
}

#elif defined(__aarch64__)

uint64_t detect() {
  uint64_t features = kFeatureNeon;  // part of the base architecture
#if defined(__linux__)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) features |= kFeatureNeonDotprod;
#if defined(HWCAP2_I8MM)
  if (getauxval(AT_HWCAP2) & HWCAP2_I8MM) features |= kFeatureNeonI8mm;
#endif
#elif defined(__APPLE__)
  features |= kFeatureNeonDotprod;  // every Apple silicon Mac
#endif
  return features;
}

#else

uint64_t detect() { return 0; }

#endif

}  // namespace

uint64_t cpu_features() {
  static const uint64_t features = detect();
  return features;
}

}  // namespace bitlab::cpu
