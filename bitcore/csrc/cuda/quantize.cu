// Quantizes rows of x to int8 columns in the order in which the products read them (fragments.cuh).
//
// A lane takes one word's share of K, 4P neighbours, which are P words of four bytes. Four lanes with t = 0..3 have the
// 16 bytes of a half step between them.
#include <algorithm>

#include "activations.cuh"
#include "async_copy.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "quantized.h"

namespace bitlab::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int64_t kManyTokens = 512;

// Bytes of weights that the blocks that quantize bring to L2, while the kernel in front still runs.
constexpr int64_t kMostPrefetched = 5 << 20;
constexpr unsigned kPrefetchingBlocks = 128;

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

// The weights that the next kernel reads, where they are few.
struct NextWeights {
  const uint8_t* packed[kMaxWeights];
  uint32_t bytes[kMaxWeights];
};

// Brings them to L2, all blocks of the grid together.
__device__ __forceinline__ void prefetch(const NextWeights& next) {
  constexpr uint32_t kPiece = 4096;
  const uint32_t blocks = gridDim.x * gridDim.y, block = blockIdx.y * gridDim.x + blockIdx.x;
  // Pieces are counted, not their bytes: so many threads as many tokens have may step over 2**32 bytes, which would be
  // 0. They are fewer than 2**32 by more than there are pieces: 128 * 65,535 blocks of 512 at most (blocks_of_tokens).
  for (int i = 0; i < kMaxWeights; ++i)
    for (uint32_t piece = threadIdx.x * blocks + block; piece < (next.bytes[i] + kPiece - 1) / kPiece;
         piece += blocks * blockDim.x)
      prefetch_to_l2(next.packed[i] + piece * kPiece, min(kPiece, next.bytes[i] - piece * kPiece));
}

// The same, faster, where all is even: values of two bytes, aligned rows of whole shares, one sum a column, and rows
// short enough to stay in registers, kKept shares a lane. A block quantizes one token, or helps to prefetch.
template <Format kFormat, int kDigits, int kBlock, int kKept>
__global__ void __launch_bounds__(kBlock)
    quantize_even_kernel(const uint16_t* x, Dtype dtype, int m, int k, int64_t x_stride, Quantized out,
                         const __grid_constant__ NextWeights next) {
  using Layout = Chunk<kFormat>;
  constexpr int kCount = 4 * Layout::kPerByte, kWarps = kBlock / 32;
  __shared__ uint32_t absmax[kWarps];
  __shared__ int sums[kWarps][kDigits];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = lane % 4, first_word = warp * 8 + lane / 4;
  const int token_of_tile = static_cast<int>(blockIdx.x), tile = tile_of_block();
  const int token = tile * out.tile_tokens + token_of_tile, words = static_cast<int>(out.chunks) * 4;
  prefetch(next);  // also where the kernel in front writes them, as this is no more than a hint
  if (token >= m) return;
  const int k0 = first_word / 4 * Layout::kWeights + (t * 4 + first_word % 4) * kCount;
  constexpr int kStepK = kWarps * 2 * Layout::kWeights;
  // Each instruction behind the wait delays the call, so what to read and write is found before.
  const uint16_t* row = in_register(x + token * x_stride + k0);
  const int left = in_register(k - k0);
  int column = token_of_tile;  // of the first digit
  if constexpr (kDigits > 1) column += column / out.token_block * out.token_block * (kDigits - 1);
  const int r_stride = out.tile_columns * 16;
  int8_t* tile_q = out.q + static_cast<int64_t>(tile) * words * Layout::kPerByte * r_stride;
  int8_t* to[kDigits];  // where the first word goes, in formats of whole pieces of 16 bytes
#pragma unroll
  for (int d = 0; d < kDigits && Layout::kPerByte == 4; ++d) {
    const int place = column + d * out.token_block;
    to[d] = in_register(tile_q + (out.fragments ? static_cast<int64_t>(first_word) * 4 * r_stride + place * 64 + t * 16
                                                : place_of(out, first_word * 4 + t, place)));
  }
  let_next_kernel_start();  // whose blocks take as long to start as these to quantize
  wait_for_previous_kernel();
  uint32_t pairs[kKept][kCount / 2];
#pragma unroll
  for (int i = 0; i < kKept; ++i) load_pairs<kCount>(row, i * kStepK, i * kStepK < left, pairs[i]);
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kKept; ++i) largest = max(largest, absmax_bits(pairs[i], dtype));
  largest = warp_max(largest);
  if (lane == 0) absmax[warp] = largest;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kWarps; ++i) largest = max(largest, absmax[i]);
  const Quantizer quantizer = quantizer_of(largest, kDigits);

  if (threadIdx.x == kBlock - 1) out.scale[token] = scale_of(largest, kDigits);
  int sum[kDigits] = {};
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int word = first_word + i * kWarps * 8;
    float values[kCount];
    to_floats<kCount>(pairs[i], dtype, values);
    uint32_t q[kDigits][Layout::kPerByte];
    quantize_share<Layout::kPerByte>(values, quantizer, q, sum);
#pragma unroll
    for (int d = 0; d < kDigits; ++d) {
      if constexpr (Layout::kPerByte == 4) {
        uint4 piece = {q[d][0], q[d][1], q[d][2], q[d][3]};
        if (!out.fragments) piece = exchange_words(q[d]);
        if (word < words) *reinterpret_cast<uint4*>(to[d] + int64_t{i} * kWarps * 32 * r_stride) = piece;
      } else {
#pragma unroll
        for (int c = 0; c < Layout::kPerByte; ++c) {
          const int place = column + d * out.token_block, r = word * Layout::kPerByte + c;
          const int64_t offset = out.fragments
                                     ? static_cast<int64_t>(r / 4) * 4 * r_stride + place * 64 + t * 16 + r % 4 * 4
                                     : place_of(out, r, place) + t * 4;
          if (word < words) *reinterpret_cast<uint32_t*>(tile_q + offset) = q[d][c];
        }
      }
    }
  }
#pragma unroll
  for (int d = 0; d < kDigits; ++d) {
    sum[d] = warp_sum(sum[d]);
    if (lane == 0) sums[warp][d] = sum[d];
  }
  __syncthreads();
  if (threadIdx.x < kDigits) {
    int total = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) total += sums[i][threadIdx.x];
    out.sum[token * kDigits + threadIdx.x] = total;
  }
}

// Whether quantize_even_kernel can serve rows of some length.
template <Format kFormat>
bool is_even(const Linear& linear, const Quantized& out) {
  return linear.dtype != Dtype::kFloat32 && linear.group_size == 0 && out.absmax_bits == nullptr &&
         linear.m * kFloatDigits < INT32_MAX && linear.k % (4 * weights_per_byte(kFormat)) == 0 &&
         (reinterpret_cast<uintptr_t>(linear.x) | static_cast<uintptr_t>(linear.x_stride * 2)) % 16 == 0;
}

NextWeights next_weights(const Linear& linear) {
  NextWeights next = {};
  int64_t bytes = 0;
  for (int i = 0; i < linear.weight_count; ++i) bytes += linear.weights[i].n * bytes_of_row(linear);
  if (bytes > kMostPrefetched) return next;
  for (int i = 0; i < linear.weight_count; ++i) {
    next.packed[i] = linear.weights[i].packed;
    next.bytes[i] = static_cast<uint32_t>(linear.weights[i].n * bytes_of_row(linear));
  }
  return next;
}

// Blocks of quantize_even_kernel that a multiprocessor has room for. Few tokens start beside the blocks of the kernel
// in front, and would gather on the multiprocessors that have none, where each then takes longer: so there is no more
// room than all need to start at once (for batch.cu that was not measured). Of many tokens all multiprocessors shall
// get as many.
int most_resident(const Linear& linear, const Quantized& out, const Device& device) {
  const bool for_hopper = out.hopper.columns > 0;
  if (linear.m >= kManyTokens || !(out.fragments || for_hopper)) return 8;
  if (for_hopper) return linear.m <= device.multiprocessors ? 2 : kMostQuantizing;
  return out.tile_columns == kNarrowColumns ? 2 : 3;
}

// Whether it did. Few tokens are a matter of latency, many of instructions, of which a lane that keeps more needs
// fewer.
template <Format kFormat, int kDigits>
bool launch_even(const Linear& linear, const Quantized& out, const Device& device, void* stream, cudaError_t* error) {
  dim3 blocks = blocks_of_tokens(linear, out);
  const NextWeights next = next_weights(linear);
  if (next.packed[0] != nullptr) blocks.y = std::max(blocks.y, (kPrefetchingBlocks + blocks.x - 1) / blocks.x);
  const int shared = share_of(device, most_resident(linear, out, device));
  const auto try_block = [&](auto kernel, int threads, int kept) {
    if (out.chunks * 4 > threads / 4 * kept) return false;
    *error = launch(kernel, blocks, threads, static_cast<size_t>(shared), stream, true, 1,
                    static_cast<const uint16_t*>(linear.x), linear.dtype, static_cast<int>(linear.m),
                    static_cast<int>(linear.k), linear.x_stride, out, next);
    return true;
  };
  // No lane of the first goes without where K is 2,560.
  if (try_block(quantize_even_kernel<kFormat, kDigits, 160, 1>, 160, 1)) return true;
  if (linear.m >= kManyTokens) {
    if (try_block(quantize_even_kernel<kFormat, kDigits, 128, 2>, 128, 2) ||
        try_block(quantize_even_kernel<kFormat, kDigits, 256, 2>, 256, 2))
      return true;
  } else if (try_block(quantize_even_kernel<kFormat, kDigits, 256, 1>, 256, 1) ||
             try_block(quantize_even_kernel<kFormat, kDigits, 512, 1>, 512, 1)) {
    return true;
  }
  return try_block(quantize_even_kernel<kFormat, kDigits, 512, 2>, 512, 2) ||
         try_block(quantize_even_kernel<kFormat, kDigits, 512, 6>, 512, 6);
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
  cudaError_t error;
  if (is_even<kFormat>(linear, out) &&
      (out.digits == 1 ? launch_even<kFormat, 1>(linear, out, device, stream, &error)
                       : launch_even<kFormat, kFloatDigits>(linear, out, device, stream, &error)))
    return error;
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
  switch (linear.format) {
    case Format::k2Bit: return launch_format<Format::k2Bit>(linear, out, device, stream);
    case Format::kBase3: return launch_format<Format::kBase3>(linear, out, device, stream);
    case Format::kInt4: return launch_format<Format::kInt4>(linear, out, device, stream);
    default: return launch_format<Format::kInt8>(linear, out, device, stream);
  }
}

}  // namespace bitlab::cuda
