// Attention of one position to a cache: what a token needs between its q/k/v and o products.
//
//     block   one head of keys and values and 1 or 4 of its query heads, one of the parts of the positions
//     lanes   8, 16 or 32 of them, 8 features each, read a position's key and value; the others of the block read its
//             neighbours. Each such row of lanes keeps its own maximum, sum and weighted values (online softmax,
//             arXiv 2205.14135), which are put together at the end
//     parts   of kFewestPositions at least: fewer are as fast in one. The block that ends last, by a counter in memory,
//             puts the parts together, in their order
//
// Every row turns the new key itself; the block whose part it ends writes it and its value into the cache, where nobody
// reads them before.
#include "attention.h"
#include "launch.cuh"
#include "row_norm.cuh"

namespace bitlab::cuda {
namespace {

constexpr int kThreads = 256, kValues = 8;
constexpr int kMostHeads = 4;              // of a block
constexpr int64_t kManyPositions = 2048;   // with room for more the heads of a group share what they read
constexpr int64_t kFewestPositions = 512;  // of a part
constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kNone = -3.0e38f;  // less than any score, and finite: no NaN of two of them

struct Part {
  float largest, sum;  // of the scores in base 2, of 2^(score - largest)
};

__device__ __forceinline__ uint4 load_16_bytes(const void* from) { return *static_cast<const uint4*>(from); }

template <Dtype kDtype>
__device__ __forceinline__ void unpack(const uint4& v, float (&values)[kValues]) {
  const uint32_t pairs[kValues / 2] = {v.x, v.y, v.z, v.w};
  to_floats<kValues>(pairs, kDtype, values);
}

// Eight features of a head and those half a head further on.
struct Halves {
  uint4 own, other;
};

// Turned: x * cos + x of the other half * sin, rounded as HalfRotary does. The first half of sin is negative.
template <Dtype kDtype>
__device__ __forceinline__ void turn(const Halves& halves, const uint4& cos_bits, const uint4& sin_bits,
                                     float (&turned)[kValues]) {
  float cos[kValues], sin[kValues], own[kValues], other[kValues];
  unpack<kDtype>(cos_bits, cos);
  unpack<kDtype>(sin_bits, sin);
  unpack<kDtype>(halves.own, own);
  unpack<kDtype>(halves.other, other);
#pragma unroll
  for (int j = 0; j < kValues; ++j)
    turned[j] = rounded<kDtype>(__fmaf_rn(other[j], sin[j], rounded<kDtype>(__fmul_rn(own[j], cos[j]))));
}

// Parts 0 to count of the positions as one, `all`; returns their weighted values.
template <class PartAt, class ValueAt>
__device__ __forceinline__ float put_together(int count, const PartAt& part_at, const ValueAt& value_at, Part& all) {
  all = {kNone, 0.0f};
  float sum = 0.0f;
#pragma unroll 8
  for (int r = 0; r < count; ++r) all.largest = fmaxf(all.largest, part_at(r).largest);
#pragma unroll 8
  for (int r = 0; r < count; ++r) {
    const Part part = part_at(r);
    const float weight = exp2f(part.largest - all.largest);
    all.sum = __fmaf_rn(weight, part.sum, all.sum);
    sum = __fmaf_rn(weight, value_at(r), sum);
  }
  return sum;
}

template <Dtype kDtype, int kHeads, int kLanes>
__global__ void __launch_bounds__(kThreads) attention_kernel(const __grid_constant__ Attention a) {
  constexpr int kRows = kThreads / kLanes, kWidth = kLanes * kValues;
  constexpr int kAhead = kHeads == 1 ? 8 : 4;  // positions of a row under way
  __shared__ Part part_of[kRows][kHeads];
  __shared__ float values_of[kRows][kHeads][kWidth];
  __shared__ bool is_last;

  const int group = a.heads / a.kv_heads, head_chunks = (group + kHeads - 1) / kHeads;
  const int kv_head = static_cast<int>(blockIdx.y) / head_chunks;              // of all in the batch
  const int first_head = static_cast<int>(blockIdx.y) % head_chunks * kHeads;  // of the group
  const int heads = min(kHeads, group - first_head);
  const int row = threadIdx.x / kLanes, feature = threadIdx.x % kLanes * kValues;
  const int half = a.head_dim / 2, other_feature = feature < half ? feature + half : feature - half;
  const bool live = feature < a.head_dim;
  const int64_t kv_row = static_cast<int64_t>(kv_head) * a.head_dim;
  const int64_t q_row = (static_cast<int64_t>(kv_head) * group + first_head) * a.head_dim;
  auto* keys = static_cast<uint16_t*>(a.keys) + kv_row * a.room + feature;
  auto* values = static_cast<uint16_t*>(a.values) + kv_row * a.room + feature;
  const auto features_of = [&](const void* tensor, int64_t begin) {
    const auto* head = static_cast<const uint16_t*>(tensor) + begin;
    return live ? Halves{load_16_bytes(head + feature), load_16_bytes(head + other_feature)} : Halves{};
  };
  wait_for_previous_kernel();
  let_next_kernel_start();

  // All that does not depend on the position is asked for at once.
  const uint4 cos = features_of(a.cos, 0).own, sin = features_of(a.sin, 0).own;
  const uint4 new_value = features_of(a.v, kv_row).own;
  const Halves k_halves = features_of(a.k, kv_row);
  Halves q_halves[kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) q_halves[h] = features_of(a.q, q_row + min(h, heads - 1) * a.head_dim);
  const int past = static_cast<int>(min(max(*a.position, int64_t{0}), a.room - 1));  // never outside the cache

  const int share = max(static_cast<int>(kFewestPositions), past / a.splits + 1);
  const int parts = past / share + 1;
  if (blockIdx.x >= parts) return;
  const int begin = blockIdx.x * share, end = min(begin + share, past + 1);

  float new_key[kValues], q[kHeads][kValues];
  turn<kDtype>(k_halves, cos, sin, new_key);
  uint4 new_key_bits;
  to_pairs<kDtype, kValues>(new_key, reinterpret_cast<uint32_t (&)[kValues / 2]>(new_key_bits));
  if (past < end && row == 0 && live && first_head == 0) {
    *reinterpret_cast<uint4*>(keys + static_cast<int64_t>(past) * a.head_dim) = new_key_bits;
    *reinterpret_cast<uint4*>(values + static_cast<int64_t>(past) * a.head_dim) = new_value;
  }
  const float scale = __fdiv_rn(kLog2E, __fsqrt_rn(static_cast<float>(a.head_dim)));
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    turn<kDtype>(q_halves[h], cos, sin, q[h]);
#pragma unroll
    for (int j = 0; j < kValues; ++j) q[h][j] *= scale;
  }
  const auto score_of = [&q](int h, const float (&k)[kValues]) {
    float dot = 0.0f;
#pragma unroll
    for (int j = 0; j < kValues; ++j) dot = __fmaf_rn(q[h][j], k[j], dot);
#pragma unroll
    for (int lane = kLanes / 2; lane > 0; lane /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, lane);
    return dot;
  };

  // The new position is that of the last part's first row.
  const bool has_new = past < end && row == 0;
  Part part[kHeads];
  float sums[kHeads][kValues];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const float score = score_of(h, new_key);
    part[h] = has_new ? Part{score, 1.0f} : Part{kNone, 0.0f};
    unpack<kDtype>(has_new ? new_value : uint4{}, sums[h]);
  }
  // All rows of a warp go on as long as one of them has positions: their lanes exchange sums.
  const int old_end = min(end, past);
  for (int first = begin; first < old_end; first += kAhead * kRows) {
    uint4 key[kAhead], value[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int position = first + row + i * kRows;
      const int64_t at = static_cast<int64_t>(position) * a.head_dim;
      key[i] = value[i] = {};
      if (live && position < old_end) key[i] = load_16_bytes(keys + at), value[i] = load_16_bytes(values + at);
    }
    float scores[kAhead][kHeads];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      float k[kValues];
      unpack<kDtype>(key[i], k);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const float score = score_of(h, k);
        scores[i][h] = first + row + i * kRows < old_end ? score : kNone;
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float largest = part[h].largest;
#pragma unroll
      for (int i = 0; i < kAhead; ++i) largest = fmaxf(largest, scores[i][h]);
      const float factor = exp2f(part[h].largest - largest);
      part[h] = {largest, part[h].sum * factor};
#pragma unroll
      for (int j = 0; j < kValues; ++j) sums[h][j] *= factor;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + row + i * kRows >= old_end) continue;
      float v[kValues];
      unpack<kDtype>(value[i], v);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const float weight = exp2f(scores[i][h] - part[h].largest);
        part[h].sum += weight;
#pragma unroll
        for (int j = 0; j < kValues; ++j) sums[h][j] = __fmaf_rn(weight, v[j], sums[h][j]);
      }
    }
  }

#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (threadIdx.x % kLanes == 0) part_of[row][h] = part[h];
#pragma unroll
    for (int j = 0; j < kValues; ++j) values_of[row][h][feature + j] = sums[h][j];
  }
  __syncthreads();

  // A thread takes every kThreads-th output of the block's heads.
  const auto for_each_output = [&](const auto& work) {
    for (int out = threadIdx.x; out < heads * a.head_dim; out += kThreads) work(out / a.head_dim, out % a.head_dim);
  };
  const auto write = [&](int h, int i, float sum, const Part& all) {
    store_float(a.y, kDtype, q_row + h * a.head_dim + i, __fdiv_rn(sum, all.sum));
  };
  const int part_floats = a.head_dim + 2;  // in memory: weighted values, largest, sum
  float* const partial = a.partial + static_cast<int64_t>(blockIdx.y) * a.splits * kHeads * part_floats;
  for_each_output([&](int h, int i) {
    Part all;
    const float sum =
        put_together(kRows, [&](int r) { return part_of[r][h]; }, [&](int r) { return values_of[r][h][i]; }, all);
    if (parts == 1) return write(h, i, sum, all);
    float* to = partial + (blockIdx.x * kHeads + h) * part_floats;
    to[i] = sum;
    if (i == 0) to[a.head_dim] = all.largest, to[a.head_dim + 1] = all.sum;
  });
  if (parts == 1) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(a.arrivals + blockIdx.y, 1) == parts - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  for_each_output([&](int h, int i) {
    const auto part_at = [&](int split) { return partial + (split * kHeads + h) * part_floats; };
    Part all;
    const float sum = put_together(
        parts,
        [&](int split) { return Part{__ldcg(part_at(split) + a.head_dim), __ldcg(part_at(split) + a.head_dim + 1)}; },
        [&](int split) { return __ldcg(part_at(split) + i); }, all);
    write(h, i, sum, all);
  });
  if (threadIdx.x == 0) a.arrivals[blockIdx.y] = 0;
}

int heads_of_block(const Attention& a) { return a.heads == a.kv_heads || a.room <= kManyPositions ? 1 : kMostHeads; }

int blocks_of_part(const Attention& a) {
  const int group = a.heads / a.kv_heads, heads = heads_of_block(a);
  return a.batch * a.kv_heads * ((group + heads - 1) / heads);
}

template <Dtype kDtype, int kHeads>
cudaError_t launch_heads(const Attention& a, void* stream) {
  const dim3 grid(static_cast<unsigned>(a.splits), static_cast<unsigned>(blocks_of_part(a)));
  const auto kernel = a.head_dim <= 64    ? attention_kernel<kDtype, kHeads, 8>
                      : a.head_dim <= 128 ? attention_kernel<kDtype, kHeads, 16>
                                          : attention_kernel<kDtype, kHeads, 32>;
  return launch(kernel, grid, kThreads, 0, stream, true, 1, a);
}

}  // namespace

// Two blocks for each multiprocessor, where there is room for as many parts.
int attention_splits(const Attention& a, const Device& device) {
  const int64_t wanted = 2 * device.multiprocessors / blocks_of_part(a);
  const int64_t most = (a.room + kFewestPositions - 1) / kFewestPositions;
  return static_cast<int>(wanted < 1 ? 1 : wanted < most ? wanted : most);
}

int64_t attention_workspace_floats(const Attention& a) {
  return a.splits == 1 ? 0 : static_cast<int64_t>(blocks_of_part(a)) * a.splits * heads_of_block(a) * (a.head_dim + 2);
}

int launch_attention(const Attention& a, void* stream) {
  const bool one = heads_of_block(a) == 1;
  if (a.dtype == Dtype::kBFloat16)
    return one ? launch_heads<Dtype::kBFloat16, 1>(a, stream) : launch_heads<Dtype::kBFloat16, kMostHeads>(a, stream);
  return one ? launch_heads<Dtype::kFloat16, 1>(a, stream) : launch_heads<Dtype::kFloat16, kMostHeads>(a, stream);
}

}  // namespace bitlab::cuda
