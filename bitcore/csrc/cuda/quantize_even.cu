// Quantizes as quantize.cu does, faster, rows where all is even; and brings the weights of the next kernel to L2.
#include <algorithm>

#include "activations.cuh"
#include "async_copy.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "quantized.h"

namespace bitlab::cuda {
namespace {

// Bytes of weights that the blocks that quantize bring to L2, while the kernel in front still runs.
constexpr int64_t kMostPrefetched = 5 << 20;
constexpr unsigned kPrefetchingBlocks = 128;

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

// Rows where all is even: values of two bytes, aligned rows of whole shares, one sum a column, and rows
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
bool launch_even(const Linear& linear, const Quantized& out, const Device& device, void* stream, int* error) {
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

template <Format kFormat>
bool launch_format(const Linear& linear, const Quantized& out, const Device& device, void* stream, int* error) {
  if (!is_even<kFormat>(linear, out)) return false;
  return out.digits == 1 ? launch_even<kFormat, 1>(linear, out, device, stream, error)
                         : launch_even<kFormat, kFloatDigits>(linear, out, device, stream, error);
}

}  // namespace

bool launch_quantize_even(const Linear& linear, const Quantized& out, const Device& device, void* stream, int* error) {
  switch (linear.format) {
    case Format::k2Bit: return launch_format<Format::k2Bit>(linear, out, device, stream, error);
    case Format::kBase3: return launch_format<Format::kBase3>(linear, out, device, stream, error);
    case Format::kInt4: return launch_format<Format::kInt4>(linear, out, device, stream, error);
    default: return launch_format<Format::kInt8>(linear, out, device, stream, error);
  }
}

}  // namespace bitlab::cuda
