// Tensor maps: how Hopper copies boxes of a matrix to shared memory and back.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>

#include "linear.h"

#if CUDART_VERSION < 12050
#error "the kernels for Hopper (9.0a) need a CUDA toolkit of 12.5 or newer; TORCH_CUDA_ARCH_LIST may leave 9.0a out"
#endif

namespace bitlab::cuda {

// The driver's function, or null where it has none.
inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  static const auto encoder = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    const bool has = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
    return has ? reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry) : nullptr;
  }();
  return encoder;
}

// Boxes of `box_rows` rows and `box_columns` elements of a matrix whose rows are `row_bytes` apart.
inline cudaError_t encode_map(void* matrix, CUtensorMapDataType type, int64_t rows, int64_t columns, int64_t row_bytes,
                              int box_rows, int box_columns, CUtensorMapSwizzle swizzle,
                              CUtensorMapL2promotion promotion, CUtensorMap* map) {
  const auto encode = tensor_map_encoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(row_bytes)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  const auto encodes = [&] {
    return encode(map, type, 2, matrix, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, promotion,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
  };
  if (encodes()) return cudaSuccess;
  // The driver asks for a context, which a thread has from its first call of the runtime on.
  int device;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  if (error != cudaSuccess) return error;
  return encodes() ? cudaSuccess : cudaErrorInvalidValue;
}

// Of a matrix of two bytes, rows `stride` elements apart: boxes of `box_rows` rows and 128 bytes, which lie in shared
// memory as place_of in quantized.h and place_of_eight have them.
inline cudaError_t map_boxes(void* matrix, Dtype dtype, int64_t rows, int64_t columns, int64_t stride, int box_rows,
                             CUtensorMap* map) {
  const auto type = dtype == Dtype::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return encode_map(matrix, type, rows, columns, stride * 2, box_rows, 64, CU_TENSOR_MAP_SWIZZLE_128B,
                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B, map);
}

// Of the packed weights of a call: boxes of `box_rows` rows and `box_bytes` of each.
inline cudaError_t map_packed(const Linear& linear, int64_t row_bytes, int box_rows, int box_bytes,
                              CUtensorMap (&maps)[kMaxWeights]) {
  cudaError_t error = cudaSuccess;
  for (int i = 0; i < linear.weight_count && error == cudaSuccess; ++i)
    error = encode_map(const_cast<uint8_t*>(linear.weights[i].packed), CU_TENSOR_MAP_DATA_TYPE_UINT8,
                       linear.weights[i].n, row_bytes, row_bytes, box_rows, box_bytes, CU_TENSOR_MAP_SWIZZLE_NONE,
                       CU_TENSOR_MAP_L2_PROMOTION_L2_128B, &maps[i]);
  return error;
}

}  // namespace bitlab::cuda
