#include "dispatch.h"

#include "cpu_features.h"

namespace bitlab::cpu {
namespace {

// BITLAB_HAVE_* is set by build_extensions.py for each instruction set that the compiler could build.
const Kernel* const kKernels[] = {
#if defined(BITLAB_HAVE_AVX512_VNNI)
    &kAvx512Vnni,
#endif
#if defined(BITLAB_HAVE_AVX_VNNI)
    &kAvxVnni,
#endif
#if defined(BITLAB_HAVE_AVX2)
    &kAvx2,
#endif
#if defined(BITLAB_HAVE_NEON_I8MM)
    &kNeonI8mm,
#endif
#if defined(BITLAB_HAVE_NEON_DOTPROD)
    &kNeonDotprod,
#endif
#if defined(BITLAB_HAVE_NEON)
    &kNeon,
#endif
    &kPortable,
};

}  // namespace

int kernel_count() { return static_cast<int>(sizeof(kKernels) / sizeof(kKernels[0])); }

const Kernel& kernel_at(int index) { return *kKernels[index]; }

const Kernel& best_kernel() {
  int index = 0;
  while (missing_features(kernel_at(index)) != 0) ++index;  // portable, the last, needs nothing
  return kernel_at(index);
}

uint64_t missing_features(const Kernel& kernel) { return kernel.required & ~cpu_features(); }

}  // namespace bitlab::cpu
