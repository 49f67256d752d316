// What Python calls (emulated_cuda.py): the interface of the CUDA kernels on the emulator.
#include <vector>

#include "attention.h"
#include "linear.h"
#include "machine.h"
#include "row_norm.h"

using namespace bitlab::cuda;

namespace {

void start(const Device& device, unsigned seed) {
  emulator::seed(seed);
  emulator::gpu = {static_cast<size_t>(device.shared_memory), false};
}

}  // namespace

extern "C" {

size_t emulated_workspace_bytes(const Linear* linear, const RowNorm* norm, const Device* device) {
  return norm == nullptr ? workspace_bytes(*linear, *device) : workspace_bytes(*linear, *norm, *device);
}

int emulated_run(const Linear* linear, const RowNorm* norm, const Device* device, void* workspace, unsigned seed) {
  start(*device, seed);
  return norm == nullptr ? run(*linear, *device, workspace, nullptr) : run(*linear, *norm, *device, workspace, nullptr);
}

int emulated_row_norm(const RowNorm* norm, const Device* device, unsigned seed) {
  start(*device, seed);
  return launch_row_norm(*norm, nullptr);
}

int emulated_attention(Attention* attention, const Device* device, unsigned seed) {
  start(*device, seed);
  attention->splits = attention_splits(*attention, *device);
  std::vector<float> partial(static_cast<size_t>(attention_workspace_floats(*attention)));
  attention->partial = partial.data();
  return launch_attention(*attention, nullptr);
}
}
