// Residual sum or gated activation, and the RMSNorm behind it, in one pass.
//
//     block   one row; its values stay in registers between the sum of squares and the scaling
//     thread  8 neighbouring values, and again those blockDim.x * 8 further on
#include "launch.cuh"
#include "row_norm.cuh"

namespace bitlab::cuda {
namespace {

constexpr int kValues = 8, kMostThreads = 1024;

__device__ __forceinline__ double block_sum(double sum) {
  __shared__ double of_warp[kMostThreads / 32];
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? of_warp[threadIdx.x % 32] : 0.0);
}

__device__ __forceinline__ void store_8(void* y, Dtype dtype, int64_t i, const float (&v)[kValues], int64_t left) {
  store_floats(y, dtype, i, {v[0], v[1], v[2], v[3]}, left < 4 ? static_cast<int>(left) : 4);
  if (left > 4) store_floats(y, dtype, i + 4, {v[4], v[5], v[6], v[7]}, left < 8 ? static_cast<int>(left) - 4 : 4);
}

template <Dtype kDtype, int kRounds>
__global__ void __launch_bounds__(kMostThreads) row_norm_kernel(const __grid_constant__ RowNorm a) {
  const int64_t size = kDtype == Dtype::kFloat32 ? 4 : 2, begin = blockIdx.x * a.n;
  const char* x = static_cast<const char*>(a.x) + begin * size;
  const char* other = static_cast<const char*>(a.other) + begin * size;
  const bool aligned = is_aligned_for_rows(a.x, kDtype, a.n) && is_aligned_for_rows(a.other, kDtype, a.n);
  const bool aligned_weight = is_aligned_for_rows(a.weight, kDtype, 0);
  prefetch_weight(a);
  wait_for_previous_kernel();
  let_next_kernel_start();

  constexpr bool kFits = kRounds == 1;  // in registers: then the weight is asked for before the sum
  float values[kRounds][kValues], weight[kValues];
  double sum = 0.0;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int64_t i = (static_cast<int64_t>(round) * blockDim.x + threadIdx.x) * kValues;
    if (i >= a.n) break;
    float factor[kValues];
    load_row<kValues>(x, kDtype, a.n, i, aligned, values[round]);
    if (a.other != nullptr) load_row<kValues>(other, kDtype, a.n, i, aligned, factor);
    if (kFits && a.weight != nullptr) load_row<kValues>(a.weight, kDtype, a.n, i, aligned_weight, weight);
    apply_source<kDtype>(a.source, factor, values[round]);
    sum += square_sum(values[round]);
    if (a.values != nullptr) store_8(static_cast<char*>(a.values) + begin * size, kDtype, i, values[round], a.n - i);
  }
  float scale = 1.0f;
  if (a.weight != nullptr) scale = norm_scale(block_sum(sum), a.n, a.eps);
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int64_t i = (static_cast<int64_t>(round) * blockDim.x + threadIdx.x) * kValues;
    if (i >= a.n) break;
    if (a.weight != nullptr) {
      if (!kFits) load_row<kValues>(a.weight, kDtype, a.n, i, aligned_weight, weight);
      normalize<kDtype>(scale, weight, values[round]);
    }
    store_8(static_cast<char*>(a.y) + begin * size, kDtype, i, values[round], a.n - i);
  }
}

template <Dtype kDtype>
cudaError_t launch_dtype(const RowNorm& norm, void* stream) {
  const int64_t vectors = (norm.n + kValues - 1) / kValues;
  const int threads = vectors < kMostThreads ? static_cast<int>((vectors + 31) / 32 * 32) : kMostThreads;
  const auto kernel = vectors <= kMostThreads ? row_norm_kernel<kDtype, 1>
                                              : row_norm_kernel<kDtype, kMostNormed / kValues / kMostThreads>;
  return launch(kernel, dim3(static_cast<unsigned>(norm.rows)), threads, 0, stream, true, 1, norm);
}

}  // namespace

int launch_row_norm(const RowNorm& norm, void* stream) {
  switch (norm.dtype) {
    case Dtype::kFloat32: return launch_dtype<Dtype::kFloat32>(norm, stream);
    case Dtype::kBFloat16: return launch_dtype<Dtype::kBFloat16>(norm, stream);
    default: return launch_dtype<Dtype::kFloat16>(norm, stream);
  }
}

}  // namespace bitlab::cuda
