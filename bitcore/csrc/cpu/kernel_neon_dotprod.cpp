// NEON with the dot product instructions of Armv8.2 (sdot). Compiled with its own flags (ISA_FLAGS in
// build_extensions.py): no static constructor, no STL, and nothing but the table has external linkage.
//
// One step takes 16 bytes of a weight row. Tiles of 4 rows x up to 4 vectors, one accumulator each; 4 rows share the
// loads of x_q. Per 256 weights (2bit): 4 loads, 12 shifts, 16 masks; and for each vector 16 sdot and 4 loads of x_q.
#if !defined(__ARM_FEATURE_DOTPROD)
#error "kernel_neon_dotprod.cpp needs -march=armv8.2-a+dotprod: see ISA_FLAGS in build_extensions.py"
#endif
#include "cpu_features.h"
#include "neon_dot.h"

namespace bitlab::cpu {
namespace {

template <class>
constexpr int rows_at_once(int) {
  return 4;
}

template <class Codes, int kVectors, int kRows>
void multiply(const Product& p, const int8_t* x_q, const uint8_t* w, int32_t* acc) {
  multiply_by_dot<Codes, kVectors, kRows>(p, x_q, w, acc);
}

}  // namespace
}  // namespace bitlab::cpu

#include "tiles.h"
#include "whole_kernel.h"

namespace bitlab::cpu {

constinit const Kernel kNeonDotprod = whole_kernel("neon_dotprod", kFeatureNeon | kFeatureNeonDotprod, 0);

}  // namespace bitlab::cpu
