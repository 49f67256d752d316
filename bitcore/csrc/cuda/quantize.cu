// Quantizes rows of x to int8 columns in the order in which the products read them (fragments.cuh).
//
// A lane takes one word's share of K, 4P neighbours, and writes P words of four bytes. Four lanes with t = 0..3 make
// the 16 bytes of a half step, and the two or four tokens of a warp lie side by side; with few tokens a warp takes
// eight words of one.
#include "activations.cuh"
#include "launch.cuh"
#include "quantized.h"

namespace bitlab::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kMostKept = 6;  // shares of K, 16 to 40 bytes, that a lane keeps in registers
constexpr int64_t kManyTokens = 512;

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
  if (live && first_word == 0 && t == 0) out.scale[token] = quantizer.scale;
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

// The same, faster, where all is even: values of two bytes, aligned rows of whole shares, one sum a
// column, and rows short enough to stay in registers: kKept shares a lane.
template <Format kFormat, int kDigits, int kTokens, int kKept>
__global__ void __launch_bounds__(kThreads)
    quantize_even_kernel(const uint16_t* x, Dtype dtype, int64_t m, int k, int64_t x_stride, Quantized out) {
  using Layout = Chunk<kFormat>;
  constexpr int kCount = 4 * Layout::kPerByte, kWarps = kThreads / 32, kLaneWords = 8 / kTokens;
  __shared__ uint32_t absmax[kWarps][kTokens];
  __shared__ int sums[kWarps][kTokens][kDigits];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int t = lane % 4, token_of_block = lane / 4 % kTokens, w0 = warp * kLaneWords + lane / 4 / kTokens;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kTokens + token_of_block;
  const bool live = token < m;
  const int words = static_cast<int>(out.chunks) * 4;
  wait_for_previous_kernel();
  let_next_kernel_start();

  const uint16_t* row = x + token * x_stride;
  uint32_t pairs[kKept][kCount / 2];
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int word = w0 + i * kWarps * kLaneWords;
    const int k0 = word / 4 * Layout::kWeights + (t * 4 + word % 4) * kCount;
    load_pairs<kCount>(row, k0, live && k0 < k, pairs[i]);
  }
  const auto over_lanes = [&](auto value, const auto& join) {  // of the token
#pragma unroll
    for (int other = 1; other < 32; other *= 2)
      if (other < 4 || other >= 4 * kTokens) value = join(value, __shfl_xor_sync(0xffffffffu, value, other));
    return value;
  };
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kKept; ++i) largest = max(largest, absmax_bits(pairs[i], dtype));
  largest = over_lanes(largest, [](uint32_t a, uint32_t b) { return max(a, b); });
  if (t == 0) absmax[warp][token_of_block] = largest;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kWarps; ++i) largest = max(largest, absmax[i][token_of_block]);
  const Quantizer quantizer = quantizer_of(largest, kDigits);

  const int64_t tile = token / out.tile_tokens;
  const int token_of_tile = static_cast<int>(token - tile * out.tile_tokens);
  const int column = token_of_tile / out.token_block * out.token_block * kDigits + token_of_tile % out.token_block;
  const int r_stride = out.tile_columns * 16;
  int8_t* to = out.q + tile * words * Layout::kPerByte * r_stride + (out.fragments ? column * 64 + t * 16 : t * 4);
  int sum[kDigits] = {};
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int word = w0 + i * kWarps * kLaneWords;
    if (!live || word >= words) break;
    float values[kCount];
    to_floats<kCount>(pairs[i], dtype, values);
    uint32_t q[kDigits][Layout::kPerByte];
    quantize_share<Layout::kPerByte>(values, quantizer, q, sum);
#pragma unroll
    for (int d = 0; d < kDigits; ++d)
#pragma unroll
      for (int c = 0; c < Layout::kPerByte; ++c) {
        const int r = word * Layout::kPerByte + c;
        const int64_t offset = out.fragments
                                   ? static_cast<int64_t>(r / 4) * 4 * r_stride + r % 4 * 4 + d * out.token_block * 64
                                   : place_of(out, r, column + d * out.token_block);
        *reinterpret_cast<uint32_t*>(to + offset) = q[d][c];
      }
  }
#pragma unroll
  for (int d = 0; d < kDigits; ++d) {
    sum[d] = over_lanes(sum[d], [](int a, int b) { return a + b; });
    if (t == 0) sums[warp][token_of_block][d] = sum[d];
  }
  __syncthreads();
  if (live && w0 == 0 && t == 0) {
    out.scale[token] = quantizer.scale;
#pragma unroll
    for (int d = 0; d < kDigits; ++d) {
      int total = 0;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) total += sums[i][token_of_block][d];
      out.sum[token * kDigits + d] = total;
    }
  }
}

template <Format kFormat, int kDigits, int kTokens>
cudaError_t launch_even(const Linear& linear, const Quantized& out, int shares, void* stream) {
  const auto kernel = shares <= 2 ? quantize_even_kernel<kFormat, kDigits, kTokens, 2>
                                  : quantize_even_kernel<kFormat, kDigits, kTokens, kMostKept>;
  const auto blocks = static_cast<unsigned>((linear.m + kTokens - 1) / kTokens);
  return launch(kernel, dim3(blocks), kThreads, 0, stream, true, 1, static_cast<const uint16_t*>(linear.x),
                linear.dtype, linear.m, static_cast<int>(linear.k), linear.x_stride, out);
}

// Shares of a row that a lane of quantize_even_kernel keeps, or 0 where that kernel cannot serve.
template <Format kFormat>
int even_shares(const Linear& linear, const Quantized& out, int tokens) {
  const bool even = linear.dtype != Dtype::kFloat32 && linear.group_size == 0 && out.absmax_bits == nullptr &&
                    linear.k % (4 * weights_per_byte(kFormat)) == 0 &&
                    (reinterpret_cast<uintptr_t>(linear.x) | static_cast<uintptr_t>(linear.x_stride * 2)) % 16 == 0;
  const int64_t words_at_once = kThreads / 32 * (8 / tokens),
                shares = (out.chunks * 4 + words_at_once - 1) / words_at_once;
  return even && shares <= kMostKept ? static_cast<int>(shares) : 0;
}

template <Format kFormat, int kWords>
cudaError_t launch_words(const Linear& linear, const Quantized& out, void* stream) {
  const bool many = linear.m >= kManyTokens;
  const size_t tokens = many ? 4 : 1;
  const size_t shared = out.groups > 1 ? tokens * out.digits * out.groups * sizeof(int) : 0;
  const auto blocks = static_cast<unsigned>((linear.m + tokens - 1) / tokens);
  const auto kernel = out.digits == 1
                          ? many ? quantize_kernel<kFormat, kWords, 1, 4> : quantize_kernel<kFormat, kWords, 1, 1>
                      : many ? quantize_kernel<kFormat, kWords, kFloatDigits, 4>
                             : quantize_kernel<kFormat, kWords, kFloatDigits, 1>;
  return launch(kernel, dim3(blocks), kThreads, shared, stream, out.absmax_bits == nullptr, 1, linear.x, linear.dtype,
                linear.m, linear.k, linear.x_stride, linear.group_size, out);
}

template <Format kFormat>
cudaError_t launch_format(const Linear& linear, const Quantized& out, void* stream) {
  const bool many = linear.m >= kManyTokens;
  if (const int shares = even_shares<kFormat>(linear, out, many ? 2 : 1); shares > 0) {
    if (out.digits == 1)
      return many ? launch_even<kFormat, 1, 2>(linear, out, shares, stream)
                  : launch_even<kFormat, 1, 1>(linear, out, shares, stream);
    return many ? launch_even<kFormat, kFloatDigits, 2>(linear, out, shares, stream)
                : launch_even<kFormat, kFloatDigits, 1>(linear, out, shares, stream);
  }
  switch (out.words) {
    case 1: return launch_words<kFormat, 1>(linear, out, stream);
    case 2: return launch_words<kFormat, 2>(linear, out, stream);
    default: return launch_words<kFormat, 4>(linear, out, stream);
  }
}

}  // namespace

int launch_quantize(const Linear& linear, const Quantized& out, void* stream) {
  if (out.absmax_bits != nullptr) {
    cudaError_t error = cudaMemsetAsync(out.absmax_bits, 0, sizeof(uint32_t), static_cast<cudaStream_t>(stream));
    if (error != cudaSuccess) return error;
    const auto blocks = static_cast<unsigned>(linear.m < 1024 ? linear.m : 1024);
    error = launch(absmax_kernel, dim3(blocks), kThreads, 0, stream, false, 1, linear.x, linear.dtype, linear.m,
                   linear.k, linear.x_stride, out.absmax_bits);
    if (error != cudaSuccess) return error;
  }
  switch (linear.format) {
    case Format::k2Bit: return launch_format<Format::k2Bit>(linear, out, stream);
    case Format::kBase3: return launch_format<Format::kBase3>(linear, out, stream);
    case Format::kInt4: return launch_format<Format::kInt4>(linear, out, stream);
    default: return launch_format<Format::kInt8>(linear, out, stream);
  }
}

}  // namespace bitlab::cuda
