// At most 8 columns: bound by reading the weights once.
//
//     block   8 warps share tiles of 16 rows, warp w reads chunks w, w + 8, ... of all 16; the blocks of a launch stay
//             and take tile after tile, with the next chunks of the warp, also of the next tile, always under way
//     lane    16 bytes of row g and 16 of row g + 8 a chunk: 4 lanes read 64 neighbouring bytes
//     shared  the chunks under way (a lane reads back what it copied itself), and the int8 activations of all K, which
//             the block makes itself from x where there is one token (block_token.cuh)
//
// Two bits a weight: 32 bytes a lane are 128 weights, 56 shifts and masks, and 8 products m16n8k32 of the warp.
#include "block_token.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "rows.cuh"
#include "tensor_core.cuh"
#include "weight_stages.cuh"

namespace bitlab::cuda {
namespace {

constexpr int kRows = 16;
constexpr int kFewResident = 2, kMostResident = 3;  // blocks of a multiprocessor: with three stages, with more

// Weights of a token that a block normalizes, each thread one word: for more, a launch of its own is faster.
constexpr int kMostNormalized = kThreads * 16;

// Of 16 rows, for each multiprocessor: up to so many, blocks start faster than their copies run out.
template <bool kQuantizes>
constexpr int kFewChunks = kQuantizes ? 250 : 160;

constexpr int kColumnStride = kRows + 4;  // of sums in shared memory: without bank conflicts

constexpr int kBuffers = 2;  // partial sums of a tile are written while those of the one before are read

// What a block declares itself, about.
constexpr size_t kStaticSharedBytes = kBuffers * kWarps * kColumns * kColumnStride * sizeof(int) + 1024;

struct Decode {
  Linear linear;
  Quantized quantized;
  RowTiles tiles;
  int64_t row_bytes;
  RowNorm norm;  // where the kernel normalizes
};

// kStages: chunks of a warp, one of them being used.
template <bool kAligned, int kStages>
constexpr int kRingBytes = kWarps * kStages * kRows * kRowStage<kAligned>;

// The chunks that a warp copies, tile after tile.
template <bool kAligned, int kStages>
struct ChunkReader {
  static constexpr int kStageBytes = kRows * kRowStage<kAligned>;

  const Decode& a;
  int tile, offset;     // of the lane's bytes in its rows; behind the last tile INT_MAX
  int chunks_end;       // offset at which a row has been read
  int turns_end;        // the same for all warps of the block: chunks in whole turns
  int64_t tile_stride;  // bytes from the rows of a tile to those of the block's next
  uint32_t to, ring;
  const Weight* weight;
  const uint8_t *row, *row8;

  __device__ __forceinline__ ChunkReader(const Decode& a, uint32_t ring)
      : a(a),
        tile(static_cast<int>(blockIdx.x)),
        chunks_end(static_cast<int>(a.quantized.chunks) * kChunkBytes),
        turns_end((chunks_end + kWarps * kChunkBytes - 1) / (kWarps * kChunkBytes) * (kWarps * kChunkBytes)),
        to(0),
        ring(ring + place_in_stage<kAligned>()) {
    find_rows();
    tile_stride = static_cast<int64_t>(gridDim.x) * kRows * a.row_bytes;
  }

  __device__ __forceinline__ void next_tile() {
    tile += static_cast<int>(gridDim.x);
    if (a.tiles.even && tile < a.tiles.count) {
      offset -= turns_end;
      row += tile_stride;
      row8 += tile_stride;
    } else {
      find_rows();
    }
  }

  __device__ __forceinline__ void find_rows() {
    offset = 0x7fffffff;
    if (tile >= a.tiles.count) return;
    offset = threadIdx.x / 32 * kChunkBytes + threadIdx.x % 4 * 16;
    int64_t first;
    weight = &a.linear.weights[weight_of_tile(a.linear, a.tiles, tile, kRows, &first)];
    const int64_t g = threadIdx.x % 32 / 4, last = weight->n - 1;
    row = weight->packed + min(first + g, last) * a.row_bytes;
    row8 = weight->packed + min(first + g + 8, last) * a.row_bytes;
  }

  // A turn of the block is a chunk for each of its warps; in the last turn of a tile for some of them none.
  __device__ __forceinline__ void copy() {
    if (offset < chunks_end) {
      copy_share<kAligned>(*weight, a.row_bytes, row, offset, ring + to);
      copy_share<kAligned>(*weight, a.row_bytes, row8, offset, ring + to + 8 * kRowStage<kAligned>);
    }
    end_copies();
    to = to + kStageBytes == kStages * kStageBytes ? 0 : to + kStageBytes;
    if (offset == 0x7fffffff) return;
    offset += kWarps * kChunkBytes;
    if (offset >= turns_end) next_tile();
  }

  // Brings the first tile nearer.
  __device__ __forceinline__ void prefetch() const {
#pragma unroll 1
    for (int ahead = offset; ahead < a.row_bytes; ahead += kWarps * kChunkBytes) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(row + ahead));
      asm volatile("prefetch.global.L2 [%0];" ::"l"(row8 + ahead));
    }
  }
};

// kNormalizes: the token is first normalized.
template <Format kFormat, int kDigits, bool kQuantizes, bool kAligned, int kStages, bool kNormalizes>
__global__ void __launch_bounds__(kThreads, kMostResident) decode_kernel(const __grid_constant__ Decode a) {
  using Reader = ChunkReader<kAligned, kStages>;
  using Layout = Chunk<kFormat>;
  extern __shared__ __align__(128) int8_t shared[];
  int8_t* q =
      shared + kRingBytes<kAligned, kStages>;  // [chunks][half steps / 4][columns][64], see Quantized::fragments
  __shared__ int partial[kBuffers][kWarps][kColumns][kColumnStride];
  __shared__ Columns of_columns;

  const Linear& linear = a.linear;
  const int m = static_cast<int>(linear.m);
  const int columns = m * kDigits;
  const int chunks = static_cast<int>(a.quantized.chunks);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t ring = shared_address(shared) + warp * (kRingBytes<kAligned, kStages> / kWarps);

  Reader reader(a, ring);
  if constexpr (kQuantizes) {
    // What runs before may have written the weights: until it has ended they may come closer, but not be used.
    reader.prefetch();
    if constexpr (kNormalizes) prefetch_weight(a.norm);
    wait_for_previous_kernel();
    let_next_kernel_start();
    BlockToken<kFormat, kNormalizes ? kMostNormalized : kMostTokenWeights> token;
    token.load(linear.x, linear.k);  // ahead of the weights, which would hold it up
    if constexpr (kNormalizes) {
      BlockRow<kFormat, kMostNormalized> others, weights;
      others.load(a.norm.other, linear.k);
      weights.load(a.norm.weight, linear.k);
#pragma unroll 1
      for (int i = 0; i < kStages - 1; ++i) reader.copy();
      if (linear.dtype == Dtype::kBFloat16) {
        token.template normalize_as<Dtype::kBFloat16>(a.norm, others, weights, of_columns);
      } else {
        token.template normalize_as<Dtype::kFloat16>(a.norm, others, weights, of_columns);
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < kStages - 1; ++i) reader.copy();
    }
    token.template quantize<kDigits>(linear.dtype, chunks * 16, q, of_columns);
    __syncthreads();
    if (threadIdx.x < kDigits) {  // read after the barrier of the first tile
      int total = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += of_columns.warp_sum[w][threadIdx.x];
      of_columns.sum[threadIdx.x] = total;
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < kStages - 1; ++i) reader.copy();
    wait_for_previous_kernel();  // the quantization, which began after all before it had ended
    let_next_kernel_start();
    // A warp needs the activations of its own chunks alone.
    const int vectors = Layout::kHalfSteps * columns;  // of 16 bytes in a chunk
    for (int chunk = warp; chunk < chunks; chunk += kWarps)
      for (int i = lane; i < vectors; i += 32)
        copy_16_bytes(shared_address(q) + (chunk * vectors + i) * 16, a.quantized.q + (chunk * vectors + i) * 16);
    end_copies();
    if (threadIdx.x < m) of_columns.scale[threadIdx.x] = a.quantized.scale[threadIdx.x];
    if (threadIdx.x < columns) of_columns.sum[threadIdx.x] = a.quantized.sum[threadIdx.x];
    wait_for_copies<0>();
    __syncwarp();
  }

  // What this lane reads of the columns; those that do not exist repeat the last one, and nobody reads their sums.
  const uint32_t column = shared_address(q) + min(lane / 4, columns - 1) * 64 + lane % 4 * 16;
  const uint32_t quad_bytes = columns * 64;

  // The output of each tile that this thread writes; with few tokens the warps take turns at it.
  int out = threadIdx.x;
  uint32_t stage = 0;
  int buffer = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < a.tiles.count; tile += static_cast<int>(gridDim.x)) {
    int64_t first;
    const Weight& weight = linear.weights[weight_of_tile(linear, a.tiles, tile, kRows, &first)];
    const int out_token = out / kRows, out_row = out % kRows;
    const int64_t n = first + out_row;
    const bool live = out_token < m && n < weight.n;
    float weight_scale;
    int zero;
    if (live) {  // asked for early
      weight_scale = weight.scale[n * weight.scale_stride];
      zero = zero_of(weight, kFormat, n, 0);
    }
    const uint8_t* row = weight.packed + min(first + lane / 4, weight.n - 1) * a.row_bytes;
    const uint8_t* row8 = weight.packed + min(first + lane / 4 + 8, weight.n - 1) * a.row_bytes;
    const uint32_t shift = shift_of_row<kAligned>(row), shift8 = shift_of_row<kAligned>(row8);

    int acc[2][4] = {};  // two chains of products, because one waits for itself
    for (int chunk = warp; chunk - warp < chunks; chunk += kWarps) {
      wait_for_copies<kStages - 2>();
      if constexpr (!kAligned) __syncwarp();
      const uint32_t place = reader.ring + stage;
      const Words<4> words = staged_words<kAligned>(place, shift);
      const Words<4> words8 = staged_words<kAligned>(place + 8 * kRowStage<kAligned>, shift8);
      reader.copy();
      stage = stage + Reader::kStageBytes == kStages * Reader::kStageBytes ? 0 : stage + Reader::kStageBytes;
      if (chunk >= chunks) continue;
      uint32_t codes[Layout::kHalfSteps], codes8[Layout::kHalfSteps];
      decode_words<kFormat>(words, codes);
      decode_words<kFormat>(words8, codes8);
      uint32_t quad = chunk * (Layout::kHalfSteps / 4) * quad_bytes;
#pragma unroll
      for (int r = 0; r < Layout::kHalfSteps; r += 4, quad += quad_bytes) {
        const Words<4> b = load_shared_words(column + quad);
        multiply_add(acc[0], codes[r], codes8[r], codes[r + 1], codes8[r + 1], b.word[0], b.word[1]);
        multiply_add(acc[1], codes[r + 2], codes8[r + 2], codes[r + 3], codes8[r + 3], b.word[2], b.word[3]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      partial[buffer][warp][2 * (lane % 4) + i % 2][lane / 4 + i / 2 * 8] = acc[0][i] + acc[1][i];
    __syncthreads();
    if (live) {
      int total[kDigits];
#pragma unroll
      for (int d = 0; d < kDigits; ++d) {
        total[d] = -zero * of_columns.sum[out_token * kDigits + d];
#pragma unroll
        for (int w = 0; w < kWarps; ++w) total[d] += partial[buffer][w][out_token * kDigits + d][out_row];
      }
      const float factor = __fmul_rn(of_columns.scale[out_token], weight_scale);
      const float value = with_bias(__fmul_rn(product_of(total, kDigits), factor), weight, n);
      store_float(weight.y, linear.dtype, out_token * weight.n + n, value);
    }
    buffer ^= 1;
    out = (out + 32) % kThreads;
  }
}

template <bool kAligned, int kStages>
size_t dynamic_shared_bytes(const Linear& linear, int digits) {
  return static_cast<size_t>(linear.m * digits * padded_k(linear.format, linear.k, 4)) + kRingBytes<kAligned, kStages>;
}

// At most `resident` blocks a multiprocessor. Where they take few tiles each, as many tiles as the others.
int blocks_of(const Decode& a, const Device& device, int resident) {
  const int most = resident * device.multiprocessors, rounds = (a.tiles.count + most - 1) / most;
  return rounds > 3 ? most : (a.tiles.count + rounds - 1) / rounds;
}

template <Format kFormat, int kDigits, bool kQuantizes, bool kAligned, int kStages, bool kNormalizes = false>
cudaError_t launch_stages(const Decode& a, const Device& device, int resident, void* stream) {
  size_t shared = dynamic_shared_bytes<kAligned, kStages>(a.linear, kDigits);
  const int fit = static_cast<int>(device.shared_memory / (shared + kStaticSharedBytes + 1024));
  resident = fit < 1 ? 1 : fit < resident ? fit : resident;
  // No more than that must fit beside each other. Else blocks that start while those of the kernel before are still
  // there gather on some multiprocessors, and all wait for these.
  const size_t share = (static_cast<size_t>(device.shared_memory) + 1024) / static_cast<size_t>(resident + 1) + 1024;
  if (shared + kStaticSharedBytes < share) shared = share - kStaticSharedBytes;
  return launch(decode_kernel<kFormat, kDigits, kQuantizes, kAligned, kStages, kNormalizes>,
                dim3(static_cast<unsigned>(blocks_of(a, device, resident))), kThreads, shared, stream, true, 1, a);
}

// The fewer tiles a block takes, the more its start counts: then fewer copies ahead of it, and fewer blocks that each
// need the activations.
template <Format kFormat, int kDigits, bool kQuantizes, bool kNormalizes = false>
cudaError_t launch_aligned(const Decode& a, const Device& device, void* stream) {
  if (a.tiles.count * a.quantized.chunks <= kFewChunks<kQuantizes> * device.multiprocessors)
    return launch_stages<kFormat, kDigits, kQuantizes, true, 3, kNormalizes>(a, device, kFewResident, stream);
  return launch_stages<kFormat, kDigits, kQuantizes, true, 5, kNormalizes>(a, device, kMostResident, stream);
}

template <Format kFormat, int kDigits, bool kQuantizes>
cudaError_t launch_kernel(const Decode& a, const Device& device, bool aligned, void* stream) {
  if (!aligned) return launch_stages<kFormat, kDigits, kQuantizes, false, 4>(a, device, kMostResident, stream);
  return launch_aligned<kFormat, kDigits, kQuantizes>(a, device, stream);
}

template <Format kFormat, int kDigits>
cudaError_t launch_digits(const Decode& a, const Device& device, bool aligned, void* stream) {
  return a.quantized.q == nullptr ? launch_kernel<kFormat, kDigits, true>(a, device, aligned, stream)
                                  : launch_kernel<kFormat, kDigits, false>(a, device, aligned, stream);
}

template <Format kFormat>
cudaError_t launch_format(const Decode& a, const Device& device, bool aligned, void* stream) {
  return a.quantized.digits == 1 ? launch_digits<kFormat, 1>(a, device, aligned, stream)
                                 : launch_digits<kFormat, kFloatDigits>(a, device, aligned, stream);
}

}  // namespace

bool decode_can_serve(const Linear& linear, int digits, const Device& device) {
  const int64_t columns = linear.m * digits;
  return linear.group_size == 0 && columns <= kColumns &&
         dynamic_shared_bytes<false, 5>(linear, digits) + kStaticSharedBytes <=
             static_cast<size_t>(device.shared_memory);
}

bool decode_can_quantize(const Linear& linear, int digits) {
  // Three digits are three times the work, which every block would do.
  return linear.m == 1 && linear.k <= (digits == 1 ? kMostTokenWeights : 4096) &&
         linear.k % (4 * weights_per_byte(linear.format)) == 0 && linear.dtype != Dtype::kFloat32 &&
         reinterpret_cast<uintptr_t>(linear.x) % 16 == 0;
}

bool decode_can_normalize(const Linear& linear, const RowNorm& norm) {
  const auto is_aligned = [](const void* row) { return reinterpret_cast<uintptr_t>(row) % 16 == 0; };
  return linear.format == Format::k2Bit && linear.k <= kMostNormalized &&
         rows_are_aligned(linear, bytes_of_row(linear)) && is_aligned(norm.other) && is_aligned(norm.weight) &&
         is_aligned(norm.values);
}

int launch_decode(const Linear& linear, const Quantized& quantized, const Device& device, void* stream) {
  const int64_t row_bytes = bytes_of_row(linear);
  const Decode a = {linear, quantized, row_tiles(linear, kRows), row_bytes, {}};
  const bool aligned = rows_are_aligned(linear, row_bytes);
  switch (linear.format) {
    case Format::k2Bit: return launch_format<Format::k2Bit>(a, device, aligned, stream);
    case Format::kBase3: return launch_format<Format::kBase3>(a, device, aligned, stream);
    case Format::kInt4: return launch_format<Format::kInt4>(a, device, aligned, stream);
    default: return launch_format<Format::kInt8>(a, device, aligned, stream);
  }
}

int launch_normalizing_decode(const Linear& linear, const RowNorm& norm, const Quantized& quantized,
                              const Device& device, void* stream) {
  const Decode a = {linear, quantized, row_tiles(linear, kRows), bytes_of_row(linear), norm};
  return launch_aligned<Format::k2Bit, 1, true, true>(a, device, stream);
}

}  // namespace bitlab::cuda
