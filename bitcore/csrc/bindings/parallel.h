// The threads of PyTorch for the torch-free code.
#pragma once

#include <torch/csrc/stable/ops.h>

namespace bitlab {

// work(begin, end) over [0, count), in this thread alone where there is no more than one grain.
inline constexpr auto parallel_for = [](int64_t count, int64_t grain, const auto& work) {
  if (count <= grain) {
    work(0, count);
  } else {
    torch::stable::parallel_for(0, count, grain, work);
  }
};

}  // namespace bitlab
