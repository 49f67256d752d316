// One token in base3, rows that start at any byte.
//
//     block    two groups of 8 warps, each with tiles of 16 rows. A tile is one piece of memory, which comes to shared
//              memory as it is, with one bulk copy; the next one is always on its way
//     warp     an eighth of K of the 16 rows
//     lane     W neighbouring words of row g and W of row g + 8, put together from the W + 1 that they straddle
//     shared   two tiles of each group, and the int8 activations of all K, which the block makes from x
//
// A byte b has five codes: code i is F(i + 1) - 3 F(i), where F(i) = b * 3**i / 256, rounded down, so F(0) = 0. The sum
// of code(i) * q(i), i = 0..4, is that of F(i) * q(i - 1), i = 1..5, less three times that of F(i) * q(i), q(5) = 0:
// the tensor cores multiply F with two columns, and codes are never made.
//
// 1.6 bits a weight. A word is 20 weights: 17 instructions that make F, 2 that bring the word, and 1.25 products
// m16n8k32 of the warp for every two.
#include <algorithm>

#include "gemv_token.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "tensor_core.cuh"

namespace bitlab::cuda {
namespace {

// F(1), ... F(5) of the four bytes of a word.
__device__ __forceinline__ void decode_floors(uint32_t word, uint32_t* floors) {
  const uint32_t even = word & 0x00ff00ffu, odd = __byte_perm(word, 0, 0x4341);
  uint32_t power = 1;
#pragma unroll
  for (int i = 0; i < kPerByte; ++i) {
    power *= 3;
    floors[i] = __byte_perm(even * power, odd * power, 0x7351);  // bytes 1 and 3 of each
  }
}

// A row's words of this lane, one after the other.
struct RowWords {
  uint32_t from, bits, last;

  __device__ __forceinline__ RowWords(uint32_t from, uint32_t bits) : from(from), bits(bits), last(load(from)) {}

  __device__ __forceinline__ static uint32_t load(uint32_t from) {
    uint32_t word;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(from));
    return word;
  }

  template <int kCount>
  __device__ __forceinline__ void next(uint32_t (&floors)[10]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const uint32_t behind = load(from + 4 * (i + 1));
      decode_floors(__funnelshift_r(last, behind, bits), floors + i * kPerByte);
      last = behind;
    }
    from += 4 * kCount;
  }
};

template <int kDigits, int kRounds, bool kPairs>
__global__ void __launch_bounds__(kGroups* kThreads, 1) gemv_kernel(const __grid_constant__ Gemv a) {
  constexpr int kColumns = kColumnsOf<kDigits>;
  extern __shared__ __align__(128) int8_t shared[];
  __shared__ uint64_t full[kGroups][kSlots];
  __shared__ uint32_t absmax[kGroups * kWarps];
  __shared__ int sum[kGroups * kWarps][kDigits];
  __shared__ int partial[kGroups][kSlots][kWarps][kColumns][kRows + 4];
  const Linear& linear = a.linear;
  const int group = static_cast<int>(threadIdx.x) / kThreads, thread = static_cast<int>(threadIdx.x) % kThreads;
  const int warp = thread / 32, lane = thread % 32;
  const uint32_t slots = shared_address(shared) + group * kSlots * a.tile_bytes;
  int8_t* columns = shared + kGroups * kSlots * a.tile_bytes;

  TileCopies copies(a, group, thread, slots, shared_address(full[group]));
  // What runs before may have written the weights: until it has ended they may come closer, but not be used.
  copies.prefetch();
  let_next_kernel_start();
  wait_for_previous_kernel();

  Token<kRounds, kPairs> token;
  token.load(a);
  for (int slot = 0; slot < kSlots; ++slot) copies.copy(slot);
  uint32_t largest = 0;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) largest = max(largest, token.absmax(a, round));
  largest = warp_max(largest);
  if (lane == 0) absmax[threadIdx.x / 32] = largest;
  __syncthreads();
  largest = warp_max(absmax[lane % (kGroups * kWarps)]);
  const Quantizer quantizer = quantizer_of(largest, kDigits);
  int sum_of_q[kDigits] = {};
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int word = round * kGroups * kThreads + static_cast<int>(threadIdx.x);
    if (word >= 4 * kWarps * a.lane_words) break;
    float values[kPerWord];
    token.floats(a, round, values);
    uint32_t q[kDigits][kPerByte];
    quantize_share<kPerByte>(values, quantizer, q, sum_of_q);
    write_columns<kDigits>(q, word, a.lane_words, columns);
  }
#pragma unroll
  for (int d = 0; d < kDigits; ++d) sum_of_q[d] = warp_sum(sum_of_q[d]);
#pragma unroll
  for (int d = 0; d < kDigits; ++d)
    if (lane == 0) sum[threadIdx.x / 32][d] = sum_of_q[d];
  const float scale = scale_of(largest, kDigits);
  __syncthreads();
#pragma unroll
  for (int d = 0; d < kDigits; ++d) sum_of_q[d] = warp_sum(lane < kGroups * kWarps ? sum[lane][d] : 0);

  // Of columns that do not exist nobody reads the sums.
  const bool live_column = lane / 4 < kColumns;
  const int8_t* first_column = columns + warp * ((a.lane_words + 1) / 2) * kColumns * kPairOfWords + lane * 16;
  const int last_of_column = kColumns * 128 - lane * 8;
  const uint32_t place = lane / 4 * a.row_bytes + (warp * 4 + lane % 4) * a.lane_words * 4;
  const uint32_t begin = place & ~3u, bits = place % 4 * 8;

  int slot = 0, parity = 0;
  int out = thread;  // the output of each tile that this thread writes; the warps take turns at it
  for (int tile = TileCopies::first_tile(group); tile < a.tiles.count; tile += TileCopies::tile_step()) {
    int64_t n;
    const Weight& weight = linear.weights[weight_of_tile(linear, a.tiles, tile, kRows, &n)];
    n += out;
    const bool live = out < kRows && n < weight.n;
    const OutputRow of_row(weight, Format::kBase3, n, live);

    copies.wait_for(slot, parity);
    const uint32_t from = slots + slot * a.tile_bytes + begin;
    RowWords row(from, bits), row8(from + 8 * a.row_bytes, bits);
    int acc[2][4] = {};
    uint32_t floors[2 * kPerByte] = {}, floors8[2 * kPerByte] = {};
    uint4 q[2] = {};
    uint2 last_q = {};
    const int8_t* of_column = first_column;
    const auto multiply = [&](int set, int r, uint32_t q0, uint32_t q1) {
      multiply_add(acc[set], floors[r], floors8[r], floors[r + 1], floors8[r + 1], q0, q1);
    };
    const auto load_column = [&](int count) {
      if (!live_column) return;
      q[0] = *reinterpret_cast<const uint4*>(of_column);
      q[1] = *reinterpret_cast<const uint4*>(of_column + kColumns * 64);
      if (count > 1) last_q = *reinterpret_cast<const uint2*>(of_column + last_of_column);
    };
#pragma unroll 2
    for (int pair = 0; pair < a.lane_words / 2; ++pair) {
      load_column(2);
      row.next<2>(floors);
      row8.next<2>(floors8);
      multiply(0, 0, q[0].x, q[0].y);
      multiply(1, 2, q[0].z, q[0].w);
      multiply(0, 4, q[1].x, q[1].y);
      multiply(1, 6, q[1].z, q[1].w);
      multiply(0, 8, last_q.x, last_q.y);
      of_column += kColumns * kPairOfWords;
    }
    if (a.lane_words % 2 != 0) {
      load_column(1);
      row.next<1>(floors);
      row8.next<1>(floors8);
      floors[kPerByte] = floors8[kPerByte] = 0;
      multiply(0, 0, q[0].x, q[0].y);
      multiply(1, 2, q[0].z, q[0].w);
      multiply(0, 4, q[1].x, q[1].y);
    }
    if (lane % 4 * 2 < kColumns)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        partial[group][slot][warp][lane % 4 * 2 + i % 2][lane / 4 + i / 2 * 8] = acc[0][i] + acc[1][i];
    synchronize_group(group);  // the sums are there, and all have left the tile
    copies.copy(slot);
    if (live) {
      int total[kDigits];
#pragma unroll
      for (int d = 0; d < kDigits; ++d) {
        total[d] = -of_row.zero * sum_of_q[d];
#pragma unroll
        for (int w = 0; w < kWarps; ++w)
          total[d] += partial[group][slot][w][2 * d][out] - 3 * partial[group][slot][w][2 * d + 1][out];
      }
      of_row.write(linear.dtype, 0, total, kDigits, scale);
    }
    slot ^= 1;
    parity ^= slot == 0;
    out = (out + 32) % kThreads;
  }
}

Gemv gemv_of(const Linear& linear) {
  const int row_bytes = static_cast<int>(bytes_of_row(linear));
  return {linear,
          row_tiles(linear, kRows),
          row_bytes,
          (row_bytes + 16 * kWarps - 1) / (16 * kWarps),
          (kRows * row_bytes + kBehindTile + 15) / 16 * 16,
          is_aligned_for_rows(linear.x, linear.dtype, 0)};
}

template <int kDigits>
int shared_bytes(const Gemv& a) {
  return kGroups * kSlots * a.tile_bytes + kWarps * (a.lane_words + 1) / 2 * kColumnsOf<kDigits> * kPairOfWords;
}

// What a block declares itself, at most.
template <int kDigits>
constexpr int kStaticSharedBytes = (kGroups * kSlots * kWarps * kColumnsOf<kDigits> * (kRows + 4) + 128) * 4;

bool can_load_pairs(const Linear& linear) {
  return linear.dtype != Dtype::kFloat32 && linear.k % 4 == 0 && reinterpret_cast<uintptr_t>(linear.x) % 8 == 0;
}

template <int kDigits, int kRounds, bool kPairs>
cudaError_t launch_token(const Gemv& a, const Device& device, void* stream) {
  const int blocks = std::min(a.tiles.count, device.multiprocessors);
  // No more than one must fit, see decode.cu.
  const int shared = std::max(shared_bytes<kDigits>(a), share_of(device, 1) - kStaticSharedBytes<kDigits>);
  return launch(gemv_kernel<kDigits, kRounds, kPairs>, dim3(static_cast<unsigned>(blocks)), kGroups * kThreads,
                static_cast<size_t>(shared), stream, true, 1, a);
}

template <int kDigits, int kRounds>
cudaError_t launch_rounds(const Gemv& a, const Device& device, void* stream) {
  return can_load_pairs(a.linear) ? launch_token<kDigits, kRounds, true>(a, device, stream)
                                  : launch_token<kDigits, kRounds, false>(a, device, stream);
}

template <int kDigits>
cudaError_t launch_digits(const Gemv& a, const Device& device, void* stream) {
  return 4 * kWarps * a.lane_words <= kGroups * kThreads ? launch_rounds<kDigits, 1>(a, device, stream)
                                                         : launch_rounds<kDigits, kMostRounds>(a, device, stream);
}

}  // namespace

bool gemv_can_serve(const Linear& linear, const Device& device) {
  if (linear.format != Format::kBase3 || linear.m != 1 || linear.group_size != 0 ||
      linear.k > (kMostRounds * kGroups * kThreads - 4 * kWarps) * kPerWord || bytes_of_row(linear) % 16 == 0 ||
      !rows_are_aligned(linear, 0))
    return false;
  const Gemv a = gemv_of(linear);
  return linear.quantization == Quantization::kNone
             ? shared_bytes<kFloatDigits>(a) + kStaticSharedBytes<kFloatDigits> <= device.shared_memory
             : shared_bytes<1>(a) + kStaticSharedBytes<1> <= device.shared_memory;
}

int launch_gemv(const Linear& linear, const Device& device, void* stream) {
  const Gemv a = gemv_of(linear);
  return linear.quantization == Quantization::kNone ? launch_digits<kFloatDigits>(a, device, stream)
                                                    : launch_digits<1>(a, device, stream);
}

}  // namespace bitlab::cuda
