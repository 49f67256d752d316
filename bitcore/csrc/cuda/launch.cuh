// Launches with the attribute that lets a kernel start before the one in front of it has ended.
//
// It may do so once all blocks of that one have ended or called let_next_kernel_start(), which a quantization calls at
// once. So what multiplies may run beside the kernel in front of the quantization, if that one also lets the next start
// early, and nothing that it writes may be read before wait_for_previous_kernel(). Weights and their scales are: they
// must have been written by kernels that end first, as all of PyTorch's do.
#pragma once

#include <cuda_runtime.h>

#include <mutex>

#include "linear.h"

namespace bitlab::cuda {

// Bytes of shared memory: of blocks that ask for so many, no more than `blocks` fit on a multiprocessor.
inline int share_of(const Device& device, int blocks) { return device.shared_memory / (blocks + 1) + 1024; }

// `cluster` blocks along z share their memory (sm_90). The kernel must call wait_for_previous_kernel().
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_memory, void* stream,
                   bool early, int cluster, Arguments... arguments) {
  // What a kernel may have belongs to the kernel, not to a launch: no other thread may ask for less in between.
  static std::mutex asking;
  const std::lock_guard lock(asking);
  if (shared_memory > 16 * 1024) {  // 48 KiB, with what the kernel declares itself, need no asking
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_memory));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_memory;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attributes[3];
  config.attrs = attributes;
  if (early) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    // Kernels run beside each other only where they want the same part of L1 as shared memory.
    attributes[config.numAttrs].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    attributes[config.numAttrs++].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  }
  if (cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = 1;
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = static_cast<unsigned>(cluster);
  }
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace bitlab::cuda
