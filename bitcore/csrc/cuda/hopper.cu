// Launches the kernel for many columns on Hopper (hopper_kernel.cuh) with the tile that was chosen (hopper_tile.h).
#include <algorithm>

#include "hopper_kernel.cuh"
#include "hopper_tile.h"
#include "launch.cuh"
#include "outputs.h"
#include "tensor_map.h"

namespace bitlab::cuda {
namespace {

template <typename Shape>
cudaError_t launch_shape(Hopper a, const Device& device, void* stream) {
  constexpr int kColumns = Shape::kColumns, kRows = Shape::kRows, kRowTiles = Shape::kRowTiles, kStage = Shape::kStage;
  constexpr int kWeights = Shape::Weights::kBytes;
  constexpr int kStatic = sizeof(Factors<kRows, kColumns>) + 1536;  // bytes of shared memory, with the system's own
  const HopperTile tile = a.quantized.hopper;
  const int splits = tile.splits, digits = a.quantized.digits;
  a.tiles = row_tiles(a.linear, kRows);
  if constexpr (Shape::kByBoxes) {
    const cudaError_t error = map_packed(a.linear, a.row_bytes, kRows, kChunkBytes, a.packed);
    if (error != cudaSuccess) return error;
  }
  a.token_tiles = static_cast<int>(hopper_token_tiles(a.linear, digits, kColumns));
  a.received_bytes = static_cast<uint32_t>(received_bytes(tile, digits));
  const int chunks = static_cast<int>(a.quantized.chunks);
  a.splits = splits;
  a.own = own_eights(kColumns, digits, splits);
  a.split_chunks = chunks / splits;
  a.longer_splits = chunks % splits;
  const int rest = kWeights + static_cast<int>(a.received_bytes) + kStatic;
  const int64_t tiles = static_cast<int64_t>(a.tiles.count) * a.token_tiles;
  const bool alone = tiles * splits <= hopper_blocks_at_once(device, splits, 1);
  // Beside blocks that are alone those of the next call's quantization shall find room, two and two.
  const int for_next = kRowTiles == 1 ? 2 * share_of(device, kMostQuantizing) : 0;
  const int space = (alone ? device.shared_memory - for_next : device.shared_memory / Shape::kResident) - rest;
  const int room_of_stages = space < 2 * kStage ? device.shared_memory - rest : space;
  const int fills = (chunks + splits - 1) / splits * Shape::kBatches;
  a.stages = std::min({room_of_stages / kStage, kMostStages, fills});
  const int outputs = hopper_groups(kRows) * static_cast<int>(kOutputBytes<kColumns, kRowTiles>);
  const int sums = a.own * 8 * Shape::kSumStride * static_cast<int>(sizeof(int));
  const int needed = static_cast<int>(a.received_bytes) + std::max({a.stages * kStage + kWeights, outputs, sums});
  // Blocks that find a multiprocessor each shall not share one.
  const int shared = alone ? std::max(needed, share_of(device, 1)) : needed;
  const int groups = (a.token_tiles + kBeside - 1) / kBeside, beside = (a.token_tiles + groups - 1) / groups;
  const dim3 grid(static_cast<unsigned>(beside), static_cast<unsigned>(a.tiles.count),
                  static_cast<unsigned>(groups * splits));
  constexpr bool kEach = Shape::kFormat == Format::k2Bit && Shape::kInt8;
  return visit_outputs<kEach>(outputs_of(a.linear, digits), [&](auto outputs_known) {
    constexpr Outputs kOutputs = decltype(outputs_known)::value;
    const auto start = [&](auto kernel) {
      return launch(kernel, grid, Shape::kMultiplying + Shape::kHelpers, static_cast<size_t>(shared), stream, true,
                    splits, a);
    };
    if constexpr (Shape::kSharesK) {
      if (splits > 1)
        return visit_own<kOutputs, kColumns / 8>(
            a.own, [&](auto own) { return start(hopper_kernel<Shape, kOutputs, decltype(own)::value>); });
    }
    return start(alone ? hopper_kernel<typename Shape::WhenAlone, kOutputs, kColumns / 8>
                       : hopper_kernel<Shape, kOutputs, kColumns / 8>);
  });
}

template <Format kFormat, int kColumns, int kRows, typename Value = int8_t>
cudaError_t launch_aligned(const Hopper& a, const Device& device, void* stream) {
  return rows_are_aligned(a.linear, a.row_bytes)
             ? launch_shape<TileShape<kFormat, kColumns, kRows, true, Value>>(a, device, stream)
             : launch_shape<TileShape<kFormat, kColumns, kRows, false, Value>>(a, device, stream);
}

template <Format kFormat, typename Value>
cudaError_t launch_floating(const Hopper& a, const Device& device, void* stream) {
  if (a.quantized.hopper.rows == 128) return launch_aligned<kFormat, 128, 128, Value>(a, device, stream);
  if constexpr (kFormat == Format::k2Bit)  // most aligned ones are hopper_turns.cu's
    return launch_shape<TileShape<kFormat, 128, 256, false, Value>>(a, device, stream);
  return launch_aligned<kFormat, 128, 256, Value>(a, device, stream);
}

template <Format kFormat>
cudaError_t launch_format(const Hopper& a, const Device& device, void* stream) {
  if (a.quantized.floating) {
    if constexpr (kFormat != Format::kInt4)
      return a.linear.dtype == Dtype::kBFloat16 ? launch_floating<kFormat, __nv_bfloat16>(a, device, stream)
                                                : launch_floating<kFormat, __half>(a, device, stream);
    return cudaErrorInvalidValue;
  }
  const int columns = a.quantized.hopper.columns;
  if constexpr (kFormat == Format::k2Bit) {  // where rows are aligned
    if (columns == 48) return launch_shape<TileShape<kFormat, 48, 128, true>>(a, device, stream);
    if (a.quantized.hopper.rows == 192) {
      if (columns == 16) return launch_shape<TileShape<kFormat, 16, 192, true>>(a, device, stream);
      if (columns == 32) return launch_shape<TileShape<kFormat, 32, 192, true>>(a, device, stream);
      return launch_shape<TileShape<kFormat, 64, 192, true>>(a, device, stream);
    }
    if (columns == 80) return launch_shape<TileShape<kFormat, 80, 256, true>>(a, device, stream);
    if (columns == 96) return launch_shape<TileShape<kFormat, 96, 256, true>>(a, device, stream);
  }
  if (columns == 16) return launch_aligned<kFormat, 16, 128>(a, device, stream);
  if (columns == 32) return launch_aligned<kFormat, 32, 128>(a, device, stream);
  if (columns == 64) return launch_aligned<kFormat, 64, 128>(a, device, stream);
  if constexpr (!hopper_is_light(kFormat, false))
    if (a.quantized.hopper.rows == 128) return launch_aligned<kFormat, 128, 128>(a, device, stream);
  return launch_aligned<kFormat, 128, 256>(a, device, stream);
}

}  // namespace

int launch_hopper(const Linear& linear, const Quantized& quantized, const Device& device, void* stream) {
  Hopper a = {};
  a.linear = linear;
  a.quantized = quantized;
  a.row_bytes = static_cast<int>(bytes_of_row(linear));
  switch (linear.format) {
    case Format::k2Bit: return launch_format<Format::k2Bit>(a, device, stream);
    case Format::kBase3: return launch_format<Format::kBase3>(a, device, stream);
    default: return launch_format<Format::kInt4>(a, device, stream);
  }
}

}  // namespace bitlab::cuda
