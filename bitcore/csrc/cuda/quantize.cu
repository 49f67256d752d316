// Quantizes rows of x to int8 columns in the order in which the products read them (fragments.cuh).
//
// A lane takes one word's share of K, 4P neighbours, which are P words of four bytes. Four lanes with t = 0..3 have the
// 16 bytes of a half step between them.
#include "activations.cuh"
#include "launch.cuh"
#include "quantized.h"

namespace bitlab::cuda {
namespace {

constexpr int kThreads = 512;

__global__ void __launch_bounds__(kThreads)
    absmax_kernel(const void* x, Dtype dtype, int64_t m, int64_t k, int64_t x_stride, uint32_t* result) {
  wait_for_previous_kernel();
  uint32_t largest = 0;
  for (int64_t row = blockIdx.x; row < m; row += gridDim.x)
    for (int64_t i = threadIdx.x; i < k; i += kThreads)
      largest = max(largest, __float_as_uint(load_float(x, dtype, row * x_stride + i)) & 0x7fffffffu);
  largest = warp_max(largest);
  if (threadIdx.x % 32 == 0) atomicMax(result, largest);
}

// Any x. A block quantizes kTokens tokens: 1, or 4 for wider writes where tokens are many.
template <Format kFormat, int kWords, int kDigits, int kTokens>
__global__ void __launch_bounds__(kThreads) quantize_kernel(const void* x, Dtype dtype, int64_t m, int64_t k,
                                                            int64_t x_stride, int64_t group_size, Quantized out) {
  using Layout = Chunk<kFormat, kWords>;
  constexpr int kCount = 4 * Layout::kPerByte;  // neighbours that a lane takes
  constexpr int kLaneWords = 8 / kTokens;       // words that a warp takes at once
  constexpr int kStep = kThreads / 32 * kLaneWords;
  __shared__ uint32_t absmax[kTokens];
  __shared__ int sums[kTokens][kDigits];
  extern __shared__ int group_sums[];  // [kTokens * digits][groups], where there are groups

  const int lane = threadIdx.x % 32;
  const int t = lane % 4, token_of_block = lane / 4 % kTokens, word_of_warp = lane / 4 / kTokens;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kTokens + token_of_block;
  const bool live = token < m;
  const int first_word = threadIdx.x / 32 * kLaneWords + word_of_warp;
  const int words = live ? static_cast<int>(out.chunks) * kWords : 0;
  if (threadIdx.x < kTokens) {
    absmax[threadIdx.x] = 0;
    for (int d = 0; d < kDigits; ++d) sums[threadIdx.x][d] = 0;
  }
  if (out.groups > 1)
    for (int i = threadIdx.x; i < kTokens * kDigits * out.groups; i += kThreads) group_sums[i] = 0;
  __syncthreads();
  wait_for_previous_kernel();
  let_next_kernel_start();

  const bool aligned = is_aligned_for_rows(x, dtype, x_stride);
  const char* row = static_cast<const char*>(x) + token * x_stride * (dtype == Dtype::kFloat32 ? 4 : 2);
  // Word `word` of lane t in its chunk starts here.
  const auto k_of = [t](int word) {
    return static_cast<int64_t>(word / kWords) * Layout::kWeights + (t * kWords + word % kWords) * kCount;
  };
  uint32_t largest = 0;
  if (out.absmax_bits == nullptr) {
#pragma unroll 2
    for (int word = first_word; word < words; word += kStep) {
      float values[kCount];
      load_row<kCount>(row, dtype, k, k_of(word), aligned, values);
      largest = max(largest, absmax_bits(values));
    }
  }
  if (out.absmax_bits != nullptr) {
    if (threadIdx.x < kTokens) absmax[threadIdx.x] = *out.absmax_bits;
  } else {
#pragma unroll
    for (int other = 1; other < 32; other *= 2)
      if (other < 4 || other >= 4 * kTokens) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, other));
    if (t == 0 && word_of_warp == 0) atomicMax(&absmax[token_of_block], largest);
  }
  __syncthreads();

  const Quantizer quantizer = quantizer_of(absmax[token_of_block], kDigits);
  if (live && first_word == 0 && t == 0) out.scale[token] = scale_of(absmax[token_of_block], kDigits);
  const int64_t tile = token / out.tile_tokens;
  const int token_of_tile = static_cast<int>(token % out.tile_tokens);
  const int column = token_of_tile / out.token_block * out.token_block * kDigits + token_of_tile % out.token_block;
  int8_t* tile_q = out.q + tile * out.chunks * Layout::kHalfSteps * out.tile_columns * 16;
  int sum[kDigits] = {};
#pragma unroll 1
  for (int word = first_word; word < words; word += kStep) {
    float values[kCount];
    load_row<kCount>(row, dtype, k, k_of(word), aligned, values);
    uint32_t q[kDigits][Layout::kPerByte];
    int word_sum[kDigits] = {};
    quantize_share<Layout::kPerByte>(values, quantizer, q, word_sum);
#pragma unroll
    for (int d = 0; d < kDigits; ++d) {
#pragma unroll
      for (int i = 0; i < Layout::kPerByte; ++i) {
        const int64_t r =
            static_cast<int64_t>(word / kWords) * Layout::kHalfSteps + word % kWords * Layout::kPerByte + i;
        const int place = column + d * out.token_block;
        const int64_t offset = out.fragments ? (r / 4 * out.tile_columns + place) * 64 + t * 16 + r % 4 * 4
                                             : place_of(out, r, place) + t * 4;
        *reinterpret_cast<uint32_t*>(tile_q + offset) = q[d][i];
      }
      sum[d] += word_sum[d];
      if (out.groups > 1 && k_of(word) < k)
        atomicAdd(&group_sums[(token_of_block * kDigits + d) * out.groups + k_of(word) / group_size], word_sum[d]);
    }
  }
  if (out.groups == 1) {
#pragma unroll
    for (int d = 0; d < kDigits; ++d) {
#pragma unroll
      for (int other = 1; other < 32; other *= 2)
        if (other < 4 || other >= 4 * kTokens) sum[d] += __shfl_xor_sync(0xffffffffu, sum[d], other);
      if (t == 0 && word_of_warp == 0) atomicAdd(&sums[token_of_block][d], sum[d]);
    }
  }
  __syncthreads();
  const int64_t columns = kTokens * kDigits, first_column = blockIdx.x * columns;
  for (int64_t i = threadIdx.x; i < columns * out.groups; i += kThreads) {
    const int64_t column_of_block = i / out.groups;
    if (first_column + column_of_block < m * kDigits)
      out.sum[first_column * out.groups + i] =
          out.groups > 1 ? group_sums[i] : sums[column_of_block / kDigits][column_of_block % kDigits];
  }
}

template <Format kFormat, int kWords>
cudaError_t launch_words(const Linear& linear, const Quantized& out, const Device& device, void* stream) {
  const auto shared_of = [&](size_t tokens) {
    return out.groups > 1 ? tokens * out.digits * out.groups * sizeof(int) : 0;
  };
  constexpr size_t kStatic = 4 * sizeof(uint32_t) * (1 + kFloatDigits);  // what a block of four tokens declares itself
  const bool many = linear.m >= kManyTokens && shared_of(4) + kStatic <= static_cast<size_t>(device.shared_memory);
  const size_t tokens = many ? 4 : 1, shared = shared_of(tokens);
  const auto blocks = static_cast<unsigned>((linear.m + tokens - 1) / tokens);
  const auto kernel = out.digits == 1
                          ? many ? quantize_kernel<kFormat, kWords, 1, 4> : quantize_kernel<kFormat, kWords, 1, 1>
                      : many ? quantize_kernel<kFormat, kWords, kFloatDigits, 4>
                             : quantize_kernel<kFormat, kWords, kFloatDigits, 1>;
  return launch(kernel, dim3(blocks), kThreads, shared, stream, out.absmax_bits == nullptr, 1, linear.x, linear.dtype,
                linear.m, linear.k, linear.x_stride, linear.group_size, out);
}

template <Format kFormat>
cudaError_t launch_format(const Linear& linear, const Quantized& out, const Device& device, void* stream) {
  switch (out.words) {
    case 1: return launch_words<kFormat, 1>(linear, out, device, stream);
    case 2: return launch_words<kFormat, 2>(linear, out, device, stream);
    default: return launch_words<kFormat, 4>(linear, out, device, stream);
  }
}

}  // namespace

int launch_quantize(const Linear& linear, const Quantized& out, const Device& device, void* stream) {
  if (out.absmax_bits != nullptr) {
    cudaError_t error = cudaMemsetAsync(out.absmax_bits, 0, sizeof(uint32_t), static_cast<cudaStream_t>(stream));
    if (error != cudaSuccess) return error;
    const auto blocks = static_cast<unsigned>(linear.m < 1024 ? linear.m : 1024);
    error = launch(absmax_kernel, dim3(blocks), kThreads, 0, stream, false, 1, linear.x, linear.dtype, linear.m,
                   linear.k, linear.x_stride, out.absmax_bits);
    if (error != cudaSuccess) return error;
  }
  int error_of_even;
  if (launch_quantize_even(linear, out, device, stream, &error_of_even)) return error_of_even;
  switch (linear.format) {
    case Format::k2Bit: return launch_format<Format::k2Bit>(linear, out, device, stream);
    case Format::kBase3: return launch_format<Format::kBase3>(linear, out, device, stream);
    case Format::kInt4: return launch_format<Format::kInt4>(linear, out, device, stream);
    default: return launch_format<Format::kInt8>(linear, out, device, stream);
  }
}

}  // namespace bitlab::cuda
