// What a block of hopper.cu computes, and what its threads, registers and shared memory are for.
#pragma once

#include "chunk_copies.cuh"
#include "hopper_block.cuh"
#include "weight_boxes.cuh"

namespace bitlab::cuda {
namespace {

// Value: int8_t, or what x is where activations stay in floating point; then ternary weights. kAlone: blocks find a
// multiprocessor each.
template <Format kFormatOfWeights, int kColumnsOfTile, int kRowsOfTile, bool kAlignedRows, typename ValueOfX = int8_t,
          bool kAlone = false>
struct TileShape {
  using Value = ValueOfX;
  static constexpr Format kFormat = kFormatOfWeights;
  static constexpr int kColumns = kColumnsOfTile, kRows = kRowsOfTile, kRowTiles = hopper_row_tiles(kRows);
  static constexpr bool kAligned = kAlignedRows, kInt8 = std::is_same_v<Value, int8_t>;
  using Sum = std::conditional_t<kInt8, int, float>;

  // The sums of more rows would take longer than the products that sharing K saves.
  static constexpr bool kSharesK = kInt8 && kRowTiles == 1;

  // A batch is decoded while the one before is multiplied; with few rows and columns there is too little to multiply
  // for that to pay.
  static constexpr bool kOverlaps = kColumns == 128 || kRows == 256;

  // A chunk is multiplied in batches, each with a stage of activations: as many as there are registers for their codes.
  static constexpr int kBatches = !kInt8 ? 4 : kOverlaps || kFormat == Format::kBase3 ? 2 : 1;
  static constexpr uint32_t kStage = Chunk<kFormat>::kHalfSteps * kColumns * 16 * sizeof(Value) / kBatches;

  // Boxes cost the warps of the products no instructions, but take longer: with few rows, where less is multiplied
  // meanwhile, each lane's own copies are faster.
  static constexpr bool kByBoxes = kAligned && kRows == 256;
  using Weights = std::conditional_t<kByBoxes, WeightBoxes<kRows>, ChunkCopies<kRows, kAligned>>;

  // Threads that multiply, and beside them a warpgroup, which gives most of its registers to them; with few columns as
  // few as can be, which leaves the products enough.
  static constexpr int kMultiplying = 128 * hopper_groups(kRows), kHelpers = kOverlaps ? kHelpingGroup : 64;
  static constexpr bool kMovesRegisters = kHelpers == kHelpingGroup;

  // Blocks of a multiprocessor that there are registers for: alone they may have twice as many. Then, and with few
  // columns, these hold two sums, and codes take fewer instructions (decode_paired). Where blocks share K that is no
  // faster.
  static constexpr int kResident = kAlone ? 1 : hopper_resident(kColumns, kRows);
  static constexpr bool kPaired =
      kInt8 && kFormat == Format::k2Bit && kAligned && !kOverlaps && (kColumns == 16 || kResident == 1);
  static constexpr bool kCanBeAlone = kFormat == Format::k2Bit && kAligned && kColumns > 16 && kResident > 1;
  using WhenAlone = TileShape<kFormat, kColumns, kRows, kAligned, Value, kAlone || kCanBeAlone>;

  static constexpr int kSumStride = kRows + 4;  // of columns of sums in shared memory: without bank conflicts
};

}  // namespace
}  // namespace bitlab::cuda
