// The kernels of this build, best first.
#pragma once

#include "kernel.h"

namespace bitlab::cpu {

int kernel_count();
const Kernel& kernel_at(int index);

// The features that `kernel` needs and this CPU lacks; 0 when it can run here.
uint64_t missing_features(const Kernel& kernel);

// The first that can run here.
const Kernel& best_kernel();

}  // namespace bitlab::cpu
