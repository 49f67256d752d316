// One token in base3, rows that start at any byte: dot products of four bytes (dp4a) instead of tensor cores.
//
//     block    8 warps, a row each; the int8 activations of all K, which the block makes from x, in shared memory
//     lane     words l, l + 32, .. of its row, each put together from the two aligned ones that it straddles
//     ahead    the words of the warp's next row are on their way while one is multiplied
//
// 1.6 bits a weight. A word is 20 weights: 25 instructions that decode it (fragments.cuh) and 5 dot products of four.
#include <algorithm>

#include "activations.cuh"
#include "async_copy.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "rows.cuh"

namespace bitlab::cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kPerWord = 4 * weights_per_byte(Format::kBase3);
constexpr int kMostWords = 16;  // of a lane
constexpr int kResident = 2;    // blocks of a multiprocessor

struct Gemv {
  Linear linear;
  RowTiles tiles;  // of a row for each warp
  int row_bytes;
  bool x_is_aligned;
};

// The int8 activations: five words for each word of a row.
template <int kWords>
struct Activations {
  uint4 first[32 * kWords];
  uint32_t fifth[32 * kWords];
  uint32_t absmax[kWarps];
  int sum[kWarps];
};

// The bytes of a word up to `end`, where the weights end.
__device__ __forceinline__ uint32_t last_bytes(const uint8_t* from, const uint8_t* end) {
  uint32_t word = 0;
#pragma unroll
  for (int b = 0; b < 3; ++b)
    if (from + b < end) word |= static_cast<uint32_t>(__ldg(from + b)) << 8 * b;
  return word;
}

// A row's words of one lane. kSure: so many of kWords all lanes surely have, and another word behind them.
template <int kWords, int kSure>
struct LaneWords {
  uint32_t low[kWords], high[kWords], shift;

  __device__ __forceinline__ void load(const uint8_t* row, int row_bytes, const uint8_t* end) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(row);
    const int lane = threadIdx.x % 32, skipped = static_cast<int>(address & 3);
    const auto* words = reinterpret_cast<const uint32_t*>(address & ~uintptr_t{3}) + lane;
    const int left = (skipped + row_bytes - 1) / 4 - lane;  // words behind this lane's first
    const int64_t inside = (end - row + skipped) / 4;       // words before `end`, which the row's last may straddle
    const int whole = static_cast<int>(min(inside, int64_t{4 * 32 * kWords})) - 1 - lane;
    const auto load_word = [&](int i) -> uint32_t {
      if (i > left) return 0;
      return i <= whole ? __ldg(words + i) : last_bytes(reinterpret_cast<const uint8_t*>(words + i), end);
    };
    shift = 8 * skipped;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      low[i] = i < kSure ? __ldg(words + 32 * i) : load_word(32 * i);
      // The word behind may not be whole.
      high[i] = i + 1 < kSure ? __ldg(words + 32 * i + 1) : load_word(32 * i + 1);
    }
  }
};

template <int kWords, int kSure>
__global__ void __launch_bounds__(kThreads, kResident) gemv_kernel(const __grid_constant__ Gemv a) {
  __shared__ Activations<kWords> q;
  const Linear& linear = a.linear;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  int tile = blockIdx.x;
  const Weight* weight;
  int64_t n;
  const auto find_row = [&] {
    weight = &linear.weights[weight_of_tile(linear, a.tiles, tile, kWarps, &n)];
    n += warp;
  };
  LaneWords<kWords, kSure> words;
  const auto load_row_of_weights = [&] {
    words.load(weight->packed + min(n, weight->n - 1) * a.row_bytes, a.row_bytes,
               weight->packed + weight->n * a.row_bytes);
  };
  find_row();
  // What runs before may have written the weights: until it has ended they may come closer, but not be used.
  if (threadIdx.x == 0)
    prefetch_to_l2(weight->packed + n * a.row_bytes, min(weight->n - n, int64_t{kWarps}) * a.row_bytes);
  let_next_kernel_start();
  wait_for_previous_kernel();

  constexpr int kRounds = (32 * kWords + kThreads - 1) / kThreads;
  float values[kRounds][kPerWord];
#pragma unroll
  for (int round = 0; round < kRounds; ++round)
    load_row<kPerWord>(linear.x, linear.dtype, linear.k, int64_t{kPerWord} * (round * kThreads + threadIdx.x),
                       a.x_is_aligned, values[round]);
  load_row_of_weights();
  uint32_t largest = 0;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) largest = max(largest, absmax_bits(values[round]));
  largest = warp_max(largest);
  if (lane == 0) q.absmax[warp] = largest;
  __syncthreads();
  largest = warp_max(q.absmax[lane % kWarps]);
  const Quantizer quantizer = quantizer_of(largest, 1);
  const float scale = scale_of(largest, 1);
  int sum_of_q[1] = {};
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int word = round * kThreads + threadIdx.x;
    uint32_t of_word[1][5];
    quantize_share<5>(values[round], quantizer, of_word, sum_of_q);
    if (word >= 32 * kWords) continue;
    q.first[word] = {of_word[0][0], of_word[0][1], of_word[0][2], of_word[0][3]};
    q.fifth[word] = of_word[0][4];
  }
  sum_of_q[0] = warp_sum(sum_of_q[0]);
  if (lane == 0) q.sum[warp] = sum_of_q[0];
  __syncthreads();
  sum_of_q[0] = warp_sum(lane < kWarps ? q.sum[lane] : 0);

  while (true) {
    uint32_t word[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) word[i] = __funnelshift_r(words.low[i], words.high[i], words.shift);
    const bool live = lane == 0 && n < weight->n;
    const OutputRow of_row(*weight, Format::kBase3, n, live);
    tile += gridDim.x;
    const bool last = tile >= a.tiles.count;
    if (!last) {
      find_row();
      load_row_of_weights();
    }
    int sum = 0;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const uint4 four = q.first[32 * i + lane];
      const uint32_t of_word[5] = {four.x, four.y, four.z, four.w, q.fifth[32 * i + lane]};
      uint32_t codes[5];
      decode<Format::kBase3>(word[i], codes);
#pragma unroll
      for (int j = 0; j < 5; ++j) sum = __dp4a(static_cast<int>(codes[j]), static_cast<int>(of_word[j]), sum);
    }
    const int total = warp_sum(sum) - (live ? of_row.zero * sum_of_q[0] : 0);
    if (live) of_row.write(linear.dtype, 0, &total, 1, scale);
    if (last) break;
  }
}

template <int kWords, int kSure>
cudaError_t launch_words(const Gemv& a, const Device& device, void* stream) {
  const int blocks = std::min(a.tiles.count, kResident * device.multiprocessors);
  // No more than kResident must fit beside each other, see decode.cu.
  const int shared = share_of(device, kResident) - static_cast<int>(sizeof(Activations<kWords>)) - 1024;
  return launch(gemv_kernel<kWords, kSure>, dim3(static_cast<unsigned>(blocks)), kThreads, static_cast<size_t>(shared),
                stream, true, 1, a);
}

}  // namespace

bool gemv_can_serve(const Linear& linear) {
  return linear.format == Format::kBase3 && linear.m == 1 && linear.quantization != Quantization::kNone &&
         linear.group_size == 0 && bytes_of_row(linear) <= 4 * 32 * kMostWords &&
         !rows_are_aligned(linear, bytes_of_row(linear));
}

int launch_gemv(const Linear& linear, const Device& device, void* stream) {
  const Gemv a = {linear, row_tiles(linear, kWarps), static_cast<int>(bytes_of_row(linear)),
                  is_aligned_for_rows(linear.x, linear.dtype, 0)};
  const int words = (a.row_bytes + 127) / 128;  // of a lane
  if (words <= 2) return launch_words<2, 0>(a, device, stream);
  if (words <= 4) return launch_words<4, 2>(a, device, stream);
  if (words <= 7) return launch_words<7, 4>(a, device, stream);
  if (words <= 10) return launch_words<10, 7>(a, device, stream);
  if (words <= 13) return launch_words<13, 10>(a, device, stream);
  return launch_words<kMostWords, 13>(a, device, stream);
}

}  // namespace bitlab::cuda
