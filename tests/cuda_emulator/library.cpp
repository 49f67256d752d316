// What Python calls (emulated_cuda.py): the interface of the CUDA kernels on the emulator.
#include "attention.h"
#include "linear.h"
#include "machine.h"
#include "row_norm.h"

using namespace bitlab::cuda;

extern "C" {

size_t emulated_workspace_bytes(const Linear* linear, const RowNorm* norm, const Device* device) {
  return norm == nullptr ? workspace_bytes(*linear, *device) : workspace_bytes(*linear, *norm, *device);
}

int emulated_run(const Linear* linear, const RowNorm* norm, const Device* device, void* workspace, unsigned seed) {
  emulator::seed(seed);
  emulator::gpu = {static_cast<size_t>(device->shared_memory), false};
  return norm == nullptr ? run(*linear, *device, workspace, nullptr) : run(*linear, *norm, *device, workspace, nullptr);
}
}
