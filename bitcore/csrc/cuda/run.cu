// Which kernels serve a call, by its number of columns, and where the quantized activations lie in its workspace.
#include <cuda_runtime.h>

#include "hopper_tile.h"
#include "kernels.h"
#include "linear.h"
#include "quantized.h"

namespace bitlab::cuda {
namespace {

enum class Path { kGemv, kDecode, kDecodeQuantizing, kNarrow, kBatch, kHopper, kHopperFloating };

// From as many tokens on the tensor cores take bfloat16 and float16 activations as they are: for fewer, three int8
// digits and as many blocks as split K are faster.
constexpr int64_t kFewestFloating = 192;

size_t aligned_up(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Packed words of a lane in a chunk: chunks must not straddle groups. 0 where no number of words fits.
int words_of(Format format, int64_t group_size) {
  if (group_size == 0) return 4;
  const int per_byte = weights_per_byte(format);
  for (const int words : {4, 2, 1})
    if (group_size % (16 * words * per_byte) == 0 && words * per_byte % 2 == 0) return words;
  return 0;
}

bool is_ternary(const Linear& linear) {
  for (int i = 0; i < linear.weight_count; ++i)
    if (linear.weights[i].zero_point != nullptr) return false;
  return linear.format == Format::k2Bit || linear.format == Format::kBase3;
}

// Whether decode.cu and narrow.cu are slower, where they can serve; as measured on an H200.
bool hopper_is_fastest(const Linear& linear, const Device& device) {
  const int64_t columns = linear.m * digits_of(linear), rows = rows_of_all(linear),
                tiles = row_tiles(linear, 128).count, multiprocessors = device.multiprocessors;
  const bool quantizes_2bit = linear.format == Format::k2Bit && linear.quantization != Quantization::kNone;
  const bool is_light = quantizes_2bit && hopper_has_all_tiles(linear);
  if (columns <= kDecodeColumns) return is_light && linear.m > 4;
  if (tiles > multiprocessors) return true;
  if (is_light) return rows * linear.k > int64_t{4096} * 4096 || (linear.k < 4096 && rows >= 2560);
  // Short rows, and a tile for each of most multiprocessors.
  return quantizes_2bit && linear.k <= 4096 && 5 * tiles >= 3 * multiprocessors;
}

Path path_of(const Linear& linear, const Device& device) {
  if (gemv_can_serve(linear, device)) return Path::kGemv;
  bool hopper = false;
#ifdef BITLAB_HAVE_HOPPER
  hopper = device.compute_capability == 90 && hopper_can_serve(linear);
#endif
  const bool hopper_first = hopper && hopper_is_fastest(linear, device);
  if (!hopper_first && decode_can_serve(linear, digits_of(linear), device))
    return decode_can_quantize(linear, digits_of(linear), device) ? Path::kDecodeQuantizing : Path::kDecode;
  if (linear.format == Format::kInt8) return Path::kBatch;  // few are asked for
  if (!hopper_first && narrow_can_serve(linear, digits_of(linear), device)) return Path::kNarrow;
  if (hopper && linear.quantization == Quantization::kNone && linear.dtype != Dtype::kFloat32 && is_ternary(linear) &&
      linear.m >= kFewestFloating)
    return Path::kHopperFloating;
  if (hopper) return Path::kHopper;
  return Path::kBatch;
}

bool reads_x_in_place(const Quantized& quantized) { return quantized.floating && quantized.hopper.turns; }

// The layout of the quantized activations, and its pieces in `workspace` (which may be null to ask for `bytes`).
Quantized quantized_of(const Linear& linear, Path path, const Device& device, void* workspace, size_t* bytes) {
  Quantized result = {};
  result.digits = digits_of(linear);
  result.words = words_of(linear.format, linear.group_size);
  result.chunks = chunks_of(linear.format, linear.k, result.words);
  result.groups = linear.group_size == 0 ? 1 : (linear.k + linear.group_size - 1) / linear.group_size;
  *bytes = 0;
  if (path == Path::kGemv || path == Path::kDecodeQuantizing) return result;
  if (path == Path::kDecode || path == Path::kNarrow) {
    result.token_block = 1;
    result.fragments = true;
    result.tile_tokens = static_cast<int>(linear.m);
    result.tile_columns = path == Path::kNarrow ? kNarrowColumns : result.tile_tokens * result.digits;
  } else if (path == Path::kHopper || path == Path::kHopperFloating) {
    result.floating = path == Path::kHopperFloating;
    if (result.floating) result.digits = 1;
    result.token_block = 1;
    result.hopper = hopper_tile(linear, result.digits, result.floating, device);
    result.tile_columns = result.hopper.columns;
    result.tile_tokens = result.tile_columns / result.digits;
    result.swizzle = hopper_swizzle(linear.format);
  } else {
    result.token_block = 8;
    result.tile_tokens = result.digits == 1 ? 64 : 16;
    result.tile_columns = result.tile_tokens * result.digits;
  }
  const int64_t tiles = (linear.m + result.tile_tokens - 1) / result.tile_tokens;
  const int64_t k = padded_k(linear.format, linear.k, result.words);
  auto* from = static_cast<char*>(workspace);
  const auto take = [&](int64_t size) {
    char* piece = from == nullptr ? nullptr : from + *bytes;
    *bytes += aligned_up(static_cast<size_t>(size));
    return piece;
  };
  if (reads_x_in_place(result)) return result;
  result.q = reinterpret_cast<int8_t*>(take(tiles * result.tile_columns * k * (result.floating ? 2 : 1)));
  if (result.floating) return result;
  result.scale = reinterpret_cast<float*>(take(linear.m * 4));
  result.sum = reinterpret_cast<int32_t*>(take(linear.m * result.digits * result.groups * 4));
  if (linear.quantization == Quantization::kPerTensor && linear.m > 1)
    result.absmax_bits = reinterpret_cast<uint32_t*>(take(4));
  return result;
}

// Whether one kernel normalizes, quantizes and multiplies.
bool is_one_kernel(const Linear& linear, const RowNorm& norm, const Device& device) {
  return path_of(linear, device) == Path::kDecodeQuantizing && digits_of(linear) == 1 &&
         decode_can_normalize(linear, norm);
}

size_t normed_bytes(const Linear& linear) {
  return aligned_up(static_cast<size_t>(linear.m * linear.k * (linear.dtype == Dtype::kFloat32 ? 4 : 2)));
}

}  // namespace

size_t workspace_bytes(const Linear& linear, const Device& device) {
  if (words_of(linear.format, linear.group_size) == 0) return 0;
  size_t bytes;
  quantized_of(linear, path_of(linear, device), device, nullptr, &bytes);
  return bytes;
}

int run(const Linear& linear, const Device& device, void* workspace, void* stream) {
  if (words_of(linear.format, linear.group_size) == 0) return cudaErrorInvalidValue;
  const Path path = path_of(linear, device);
  size_t bytes;
  const Quantized quantized = quantized_of(linear, path, device, workspace, &bytes);
  if (path == Path::kGemv) return launch_gemv(linear, device, stream);
  if (path == Path::kDecodeQuantizing) return launch_decode(linear, quantized, device, stream);
  const int error = reads_x_in_place(quantized) ? cudaSuccess
                    : quantized.floating        ? launch_arrange(linear, quantized, stream)
                                                : launch_quantize(linear, quantized, device, stream);
  if (error != cudaSuccess) return error;
  if (path == Path::kDecode) return launch_decode(linear, quantized, device, stream);
  if (path == Path::kNarrow) return launch_narrow(linear, quantized, device, stream);
#ifdef BITLAB_HAVE_HOPPER
  if (path == Path::kHopper || path == Path::kHopperFloating)
    return quantized.hopper.turns ? launch_hopper_turns(linear, quantized, device, stream)
                                  : launch_hopper(linear, quantized, device, stream);
#endif
  return launch_batch(linear, quantized, stream);
}

size_t workspace_bytes(const Linear& linear, const RowNorm& norm, const Device& device) {
  if (is_one_kernel(linear, norm, device)) return 0;
  Linear of_normed = linear;
  of_normed.x = nullptr;  // the beginning of a workspace, which is as aligned
  of_normed.x_stride = linear.k;
  return normed_bytes(linear) + workspace_bytes(of_normed, device);
}

int run(const Linear& linear, const RowNorm& norm, const Device& device, void* workspace, void* stream) {
  size_t bytes;
  if (is_one_kernel(linear, norm, device)) {
    const Quantized quantized = quantized_of(linear, Path::kDecodeQuantizing, device, nullptr, &bytes);
    return launch_normalizing_decode(linear, norm, quantized, device, stream);
  }
  RowNorm to_workspace = norm;
  to_workspace.y = workspace;
  const int error = launch_row_norm(to_workspace, stream);
  if (error != cudaSuccess) return error;
  Linear of_normed = linear;
  of_normed.x = workspace;
  of_normed.x_stride = linear.k;
  return run(of_normed, device, static_cast<char*>(workspace) + normed_bytes(linear), stream);
}

}  // namespace bitlab::cuda
