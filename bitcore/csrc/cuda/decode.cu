// At most 8 columns: bound by reading the weights once.
//
//     group   8 warps share tiles of 16 rows, warp w reads chunks w, w + 8, ... of all 16; the groups of a launch stay
//             and take tile after tile, with the next chunks of the warp, also of the next tile, always under way
//     block   one group, or two that quantize the activations together
//     lane    16 bytes of row g and 16 of row g + 8 a chunk: 4 lanes read 64 neighbouring bytes
//     shared  the chunks under way (a lane reads back what it copied itself), and the int8 activations of all K, which
//             the block makes itself from x where that is few values (block_tokens.cuh)
//
// Two bits a weight: 32 bytes a lane are 128 weights, 40 shifts and masks, and 8 products m16n8k32 of the warp.
#include <algorithm>

#include "block_tokens.cuh"
#include "chunk_reader.cuh"
#include "launch.cuh"
#include "tensor_core.cuh"

namespace bitlab::cuda {
namespace {

constexpr int kResident = 2;  // groups of a multiprocessor

// Of 16 rows, for each multiprocessor: up to so many, blocks start faster than their copies run out.
constexpr int kFewChunks = 250;

constexpr int kColumnStride = kRows + 4;  // of sums in shared memory: without bank conflicts

constexpr int kBuffers = 2;  // partial sums of a tile are written while those of the one before are read

// What a block declares itself, about.
template <Source kSource>
constexpr size_t kStaticSharedBytes =
    kGroups<kSource> * kBuffers * kWarps * kColumns * kColumnStride * sizeof(int) + 1024;

struct Decode : TiledCall {
  RowNorm norm;  // where the kernel normalizes
};

template <Format kFormat, int kDigits, Source kSource, bool kAligned, int kStages>
__global__ void __launch_bounds__(kThreads* kGroups<kSource>, kResident / kGroups<kSource>)
    decode_kernel(const __grid_constant__ Decode a) {
  using Layout = Chunk<kFormat>;
  constexpr int kStageBytes = kRows * kRowStage<kAligned>;
  extern __shared__ __align__(128) int8_t shared[];
  // [chunks][half steps / 4][columns][64], see Quantized::fragments
  int8_t* q = shared + kGroups<kSource> * kRingBytes<kWarps, kAligned, kStages>;
  __shared__ int partial[kGroups<kSource>][kBuffers][kWarps][kColumns][kColumnStride];
  __shared__ Columns of_columns;

  const Linear& linear = a.linear;
  const int m = static_cast<int>(linear.m);
  const int columns = kSource != Source::kWorkspace && kMostTokens<kSource> == 1 ? kDigits : m * kDigits;
  const int chunks = static_cast<int>(a.quantized.chunks);
  const int group = kGroups<kSource> == 1 ? 0 : static_cast<int>(threadIdx.x) / kThreads;
  const int thread = static_cast<int>(threadIdx.x) - group * kThreads, warp = thread / 32, lane = thread % 32;
  const uint32_t ring = in_register(shared_address(shared) + (group * kWarps + warp) * kStages * kStageBytes +
                                    place_in_stage<kAligned>());

  using Reader = ChunkReader<kWarps, kGroups<kSource>, kAligned>;
  Reader reader(a);
  if constexpr (kSource == Source::kWorkspace) {
#pragma unroll 1
    for (int i = 0; i < kStages - 1; ++i) reader.copy(ring + i * kStageBytes);
    wait_for_previous_kernel();  // the quantization; weights are there before, see launch.cuh
    let_next_kernel_start();
    // A warp needs the activations of its own chunks alone.
    const int vectors = Layout::kHalfSteps * columns;  // of 16 bytes in a chunk
    for (int chunk = warp; chunk < chunks; chunk += kWarps)
      for (int i = lane; i < vectors; i += 32)
        copy_16_bytes(shared_address(q) + (chunk * vectors + i) * 16, a.quantized.q + (chunk * vectors + i) * 16);
    end_copies();
    if (threadIdx.x < m) of_columns.scale[threadIdx.x] = a.quantized.scale[threadIdx.x];
    if (threadIdx.x < columns) of_columns.sum[0][threadIdx.x] = a.quantized.sum[threadIdx.x];
    wait_for_copies<0>();
    __syncwarp();
  } else {
    // What runs before may have written the weights: until it has ended they may come closer, but not be used.
    reader.prefetch();
    if constexpr (kSource == Source::kNormed) prefetch_weight(a.norm);
    // Each instruction behind the wait delays the call, so what to read is found before.
    using Tokens = BlockTokens<kFormat, kSource>;
    Tokens tokens(linear);
    typename Reader::Ahead ahead[kStages - 1];
    if constexpr (kAligned)
#pragma unroll
      for (int i = 0; i < kStages - 1; ++i) ahead[i] = reader.look_ahead();
    let_next_kernel_start();  // it waits for the end of this one, which waits for what runs before
    wait_for_previous_kernel();
    tokens.load();
    const auto copy_first = [&] {
#pragma unroll
      for (int i = 0; i < kStages - 1; ++i) {
        if constexpr (kAligned) {
          reader.copy(ahead[i], ring + i * kStageBytes);
        } else {
          reader.copy(ring + i * kStageBytes);
        }
      }
    };
    if constexpr (kSource == Source::kNormed) {
      typename Tokens::Row others, weights;
      others.load(static_cast<const uint16_t*>(a.norm.other) + Tokens::Row::first(),
                  a.norm.other == nullptr ? 0 : tokens.left);
      weights.load(static_cast<const uint16_t*>(a.norm.weight) + Tokens::Row::first(),
                   a.norm.weight == nullptr ? 0 : tokens.left);
      if (linear.dtype == Dtype::kBFloat16) {
        tokens.template normalize_as<Dtype::kBFloat16>(a.norm, others, weights, of_columns);
      } else {
        tokens.template normalize_as<Dtype::kFloat16>(a.norm, others, weights, of_columns);
      }
    }
    tokens.template quantize<kDigits>(linear.dtype, m, chunks * 16, q, of_columns, copy_first);
    __syncthreads();
    if (thread < columns)  // read after the barrier of the group's first tile
      of_columns.sum[group][thread] = Tokens::template sum_of<kDigits>(of_columns, thread);
  }

  // What this lane reads of the columns; those that do not exist repeat the last one, and nobody reads their sums.
  const uint32_t quad_bytes = columns * 64, chunk_bytes = Layout::kHalfSteps / 4 * quad_bytes;
  const uint32_t column =
      in_register(shared_address(q) + min(lane / 4, columns - 1) * 64 + lane % 4 * 16 + warp * chunk_bytes);
  const int warp_chunks = in_register(chunks - warp);

  // The output of each tile that this thread writes; with few tokens the warps take turns at it.
  int out = thread;
  uint32_t stage = ring, last_stage = ring + (kStages - 1) * kStageBytes;
  int buffer = 0;
  for (int tile = Reader::first_tile(); tile < a.tiles.count; tile += Reader::tile_step()) {
    int64_t first;
    const Weight& weight = linear.weights[weight_of_tile(linear, a.tiles, tile, kRows, &first)];
    const int out_token = out / kRows, out_row = out % kRows;
    const int64_t n = first + out_row;
    const bool live = out_token < m && n < weight.n;
    const OutputRow of_row(weight, kFormat, n, live);
    const uint8_t* row = weight.packed + min(first + lane / 4, weight.n - 1) * a.row_bytes;
    const uint8_t* row8 = weight.packed + min(first + lane / 4 + 8, weight.n - 1) * a.row_bytes;
    const uint32_t shift = shift_of_row<kAligned>(row), shift8 = shift_of_row<kAligned>(row8);

    int acc[2][4] = {};  // by scale of decode_words
    uint32_t activations = column;
    for (int chunk = 0; chunk < chunks; chunk += kWarps, activations += kWarps * chunk_bytes) {
      wait_for_copies<kStages - 2>();
      if constexpr (!kAligned) __syncwarp();
      const Words<4> words = staged_words<kAligned>(stage, shift);
      const Words<4> words8 = staged_words<kAligned>(stage + 8 * kRowStage<kAligned>, shift8);
      reader.copy(last_stage);
      last_stage = stage;
      stage = stage == ring + (kStages - 1) * kStageBytes ? ring : stage + kStageBytes;
      if (chunk >= warp_chunks) continue;
      uint32_t codes[Layout::kHalfSteps], codes8[Layout::kHalfSteps];
      decode_words<kFormat>(words, codes);
      decode_words<kFormat>(words8, codes8);
#pragma unroll
      for (int r = 0; r < Layout::kHalfSteps; r += 4) {
        const Words<4> b = load_shared_words(activations + r / 4 * quad_bytes);
        multiply_add(acc[0], codes[r], codes8[r], codes[r + 1], codes8[r + 1], b.word[0], b.word[1]);
        multiply_add(acc[1], codes[r + 2], codes8[r + 2], codes[r + 3], codes8[r + 3], b.word[2], b.word[3]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      partial[group][buffer][warp][2 * (lane % 4) + i % 2][lane / 4 + i / 2 * 8] =
          sum_of_pairs<kFormat>(acc[0][i], acc[1][i]);
    if constexpr (kGroups<kSource> == 1) {
      __syncthreads();
    } else {
      asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(kThreads) : "memory");
    }
    if (live) {
      int total[kDigits];
#pragma unroll
      for (int d = 0; d < kDigits; ++d) {
        total[d] = -of_row.zero * of_columns.sum[group][out_token * kDigits + d];
#pragma unroll
        for (int w = 0; w < kWarps; ++w) total[d] += partial[group][buffer][w][out_token * kDigits + d][out_row];
      }
      of_row.write(linear.dtype, out_token, total, kDigits, of_columns.scale[out_token]);
    }
    buffer ^= 1;
    out = (out + 32) % kThreads;
  }
}

template <Source kSource, bool kAligned, int kStages>
size_t dynamic_shared_bytes(const Linear& linear, int digits) {
  return static_cast<size_t>(linear.m * digits * padded_k(linear.format, linear.k, 4)) +
         kGroups<kSource> * kRingBytes<kWarps, kAligned, kStages>;
}

// Whether a block finds room at all.
template <Source kSource>
bool has_room(const Linear& linear, int digits, const Device& device) {
  const size_t bytes = rows_are_aligned(linear, bytes_of_row(linear))
                           ? dynamic_shared_bytes<kSource, true, 3>(linear, digits)
                           : dynamic_shared_bytes<kSource, false, 4>(linear, digits);
  return bytes + kStaticSharedBytes<kSource> <= static_cast<size_t>(device.shared_memory);
}

// Blocks that find room on a multiprocessor.
template <Source kSource, bool kAligned, int kStages>
int resident_blocks(const Decode& a, const Device& device) {
  const size_t block = dynamic_shared_bytes<kSource, kAligned, kStages>(a.linear, a.quantized.digits) +
                       kStaticSharedBytes<kSource> + 1024;
  return std::min(static_cast<int>((static_cast<size_t>(device.shared_memory) + 1024) / block),
                  kResident / kGroups<kSource>);
}

template <Format kFormat, int kDigits, Source kSource, bool kAligned, int kStages>
cudaError_t launch_stages(const Decode& a, const Device& device, void* stream) {
  const int resident = resident_blocks<kSource, kAligned, kStages>(a, device);
  // No more than that must fit beside each other. Else blocks that start while those of the kernel before are still
  // there gather on some multiprocessors, and all wait for these.
  const size_t share = (static_cast<size_t>(device.shared_memory) + 1024) / static_cast<size_t>(resident + 1) + 1024;
  const size_t shared = std::max(dynamic_shared_bytes<kSource, kAligned, kStages>(a.linear, kDigits),
                                 share - kStaticSharedBytes<kSource>);
  // Where blocks of one group take few tiles each, as many as the others.
  const int most = resident * device.multiprocessors, rounds = (a.tiles.count + most - 1) / most;
  const int blocks = kGroups<kSource> > 1 ? std::min(most, a.tiles.count)
                     : rounds > 3         ? most
                                          : (a.tiles.count + rounds - 1) / rounds;
  return launch(decode_kernel<kFormat, kDigits, kSource, kAligned, kStages>, dim3(static_cast<unsigned>(blocks)),
                kThreads * kGroups<kSource>, shared, stream, true, 1, a);
}

// The fewer tiles a block takes, the more its start counts: then fewer copies ahead of it. Fewer also where more would
// leave room for fewer blocks.
template <Format kFormat, int kDigits, Source kSource>
cudaError_t launch_aligned(const Decode& a, const Device& device, void* stream) {
  if (a.tiles.count * a.quantized.chunks <= kFewChunks * device.multiprocessors ||
      resident_blocks<kSource, true, 5>(a, device) * kGroups<kSource> < kResident)
    return launch_stages<kFormat, kDigits, kSource, true, 3>(a, device, stream);
  return launch_stages<kFormat, kDigits, kSource, true, 5>(a, device, stream);
}

template <Format kFormat, int kDigits, Source kSource>
cudaError_t launch_source(const Decode& a, const Device& device, bool aligned, void* stream) {
  if (!aligned) return launch_stages<kFormat, kDigits, kSource, false, 4>(a, device, stream);
  return launch_aligned<kFormat, kDigits, kSource>(a, device, stream);
}

template <Format kFormat, int kDigits>
cudaError_t launch_digits(const Decode& a, const Device& device, bool aligned, void* stream) {
  if (a.quantized.q != nullptr) return launch_source<kFormat, kDigits, Source::kWorkspace>(a, device, aligned, stream);
  if constexpr (kDigits == 1) {
    if (a.linear.m > 2) return launch_source<kFormat, 1, Source::kFour>(a, device, aligned, stream);
    if (a.linear.m > 1) return launch_source<kFormat, 1, Source::kTwo>(a, device, aligned, stream);
  }
  if (a.linear.k <= kMostShort) return launch_source<kFormat, kDigits, Source::kShort>(a, device, aligned, stream);
  return launch_source<kFormat, kDigits, Source::kLong>(a, device, aligned, stream);
}

template <Format kFormat>
cudaError_t launch_format(const Decode& a, const Device& device, bool aligned, void* stream) {
  return a.quantized.digits == 1 ? launch_digits<kFormat, 1>(a, device, aligned, stream)
                                 : launch_digits<kFormat, kFloatDigits>(a, device, aligned, stream);
}

}  // namespace

bool decode_can_serve(const Linear& linear, int digits, const Device& device) {
  return linear.group_size == 0 && linear.m * digits <= kColumns &&
         has_room<Source::kWorkspace>(linear, digits, device);
}

bool decode_can_quantize(const Linear& linear, int digits, const Device& device) {
  if (linear.k % (4 * weights_per_byte(linear.format)) != 0 || linear.dtype == Dtype::kFloat32 ||
      reinterpret_cast<uintptr_t>(linear.x) % 16 != 0)
    return false;
  if (linear.m == 1)
    return linear.k <= kMostShort || (linear.k <= kMostLong && has_room<Source::kLong>(linear, digits, device));
  return digits == 1 && linear.quantization == Quantization::kPerToken && linear.m <= kMostTokens<Source::kFour> &&
         linear.k <= (linear.m == 2 ? kMostOfTwo : kMostOfFour) && linear.x_stride % 8 == 0 &&
         has_room<Source::kFour>(linear, digits, device);
}

bool decode_can_normalize(const Linear& linear, const RowNorm& norm) {
  const auto is_aligned = [](const void* row) { return reinterpret_cast<uintptr_t>(row) % 16 == 0; };
  return linear.m == 1 && linear.format == Format::k2Bit && linear.k <= kMostShort &&
         rows_are_aligned(linear, bytes_of_row(linear)) && is_aligned(norm.other) && is_aligned(norm.weight) &&
         is_aligned(norm.values);
}

int launch_decode(const Linear& linear, const Quantized& quantized, const Device& device, void* stream) {
  const int64_t row_bytes = bytes_of_row(linear);
  const Decode a = {{linear, quantized, row_tiles(linear, kRows), row_bytes}, {}};
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
  const Decode a = {{linear, quantized, row_tiles(linear, kRows), bytes_of_row(linear)}, norm};
  return launch_aligned<Format::k2Bit, 1, Source::kNormed>(a, device, stream);
}

}  // namespace bitlab::cuda
