#pragma once

#include "cuda.h"
#include "cuda_runtime.h"

using PFN_cuTensorMapEncodeTiled_v12000 = CUresult (*)(CUtensorMap*, CUtensorMapDataType, uint32_t rank, void* matrix,
                                                       const cuuint64_t* sizes, const cuuint64_t* strides,
                                                       const cuuint32_t* box, const cuuint32_t* steps,
                                                       CUtensorMapInterleave, CUtensorMapSwizzle,
                                                       CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess };
enum { cudaEnableDefault };

// As the driver's manual says of the arguments.
inline CUresult encode_tensor_map(CUtensorMap* map, CUtensorMapDataType bytes, uint32_t rank, void* matrix,
                                  const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                  const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                  CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  const bool valid = rank == 2 && reinterpret_cast<uintptr_t>(matrix) % 16 == 0 && strides[0] % 16 == 0 &&
                     sizes[0] > 0 && sizes[1] > 0 && sizes[0] <= uint64_t{1} << 32 && sizes[1] <= uint64_t{1} << 32 &&
                     strides[0] < uint64_t{1} << 40 && box[0] <= 256 && box[1] <= 256 && box[0] * bytes % 16 == 0 &&
                     steps[0] == 1 && steps[1] == 1 && (swizzle == CU_TENSOR_MAP_SWIZZLE_NONE || box[0] * bytes <= 128);
  if (!valid || !emulator::gpu.has_context) return CUDA_ERROR_INVALID_VALUE;
  *map = {static_cast<uint8_t*>(matrix),    static_cast<int>(bytes),
          static_cast<int64_t>(sizes[1]),   static_cast<int64_t>(sizes[0]),
          static_cast<int64_t>(strides[0]), static_cast<int>(box[1]),
          static_cast<int>(box[0]),         swizzle == CU_TENSOR_MAP_SWIZZLE_128B};
  return CUDA_SUCCESS;
}

inline cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** entry, int, int,
                                                    cudaDriverEntryPointQueryResult* found) {
  *entry = reinterpret_cast<void*>(&encode_tensor_map);
  *found = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
