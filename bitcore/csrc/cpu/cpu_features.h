// What this CPU can execute, and what its operating system saves on a context switch.
#pragma once

#include <cstdint>

namespace bitlab::cpu {

struct CpuFeature {
  const char* name;  // as in /proc/cpuinfo
  uint64_t bit;
};

constexpr uint64_t kFeatureAvx2 = 1u << 0;
constexpr uint64_t kFeatureAvxVnni = 1u << 1;
constexpr uint64_t kFeatureAvx512f = 1u << 2;
constexpr uint64_t kFeatureAvx512bw = 1u << 3;
constexpr uint64_t kFeatureAvx512vl = 1u << 4;
constexpr uint64_t kFeatureAvx512Vnni = 1u << 5;
constexpr uint64_t kFeatureNeon = 1u << 6;
constexpr uint64_t kFeatureNeonDotprod = 1u << 7;
constexpr uint64_t kFeatureNeonI8mm = 1u << 8;

// clang-format off
constexpr CpuFeature kCpuFeatures[] = {
    {"avx2", kFeatureAvx2},
    {"avx_vnni", kFeatureAvxVnni},
    {"avx512f", kFeatureAvx512f},
    {"avx512bw", kFeatureAvx512bw},
    {"avx512vl", kFeatureAvx512vl},
    {"avx512_vnni", kFeatureAvx512Vnni},
    {"neon", kFeatureNeon},
    {"asimddp", kFeatureNeonDotprod},
    {"i8mm", kFeatureNeonI8mm},
};
// clang-format on

// The features of the CPU that calls, asked once. A vector extension counts only if the operating system saves its
// registers.
uint64_t cpu_features();

}  // namespace bitlab::cpu
