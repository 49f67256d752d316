// Quantized activations in the workspace, between the kernel that quantizes and the one that multiplies.
#pragma once

#include "linear.h"

namespace bitlab::cuda {

// What a block of hopper.cu or hopper_turns.cu computes.
struct HopperTile {
  int columns;       // tokens, or digits of tokens
  int rows;          // 128 or 256 of two warpgroups, or 192 of three
  int splits;        // blocks that share K
  bool turns;        // hopper_turns.cu computes it
  int last_columns;  // there: of tiles behind the last whole turn of all multiprocessors; 0: the same
};

// Columns are int8 vectors: the tokens, or the three digits of each. A tile of columns holds whole tokens: blocks of
// token_block tokens, once for each digit.
struct Quantized {
  int8_t* q;              // [tiles][chunks][half steps][tile_columns][16], or as `fragments` or `swizzle` say; null
                          // where hopper_turns.cu reads x itself
  float* scale;           // [m]
  int32_t* sum;           // [m * digits][groups], of q
  uint32_t* absmax_bits;  // [1], of the whole input; per_tensor alone
  int digits;
  int tile_columns;
  int tile_tokens;  // tile_columns / digits
  int token_block;
  bool fragments;  // [tiles][chunks][half steps / 4][tile_columns][t][half step % 4][4]: what a lane needs, together
  bool floating;   // q holds x itself, [tiles][chunks][half steps][2][tile_columns][t][2] values of two bytes
  int swizzle;     // 2 ** swizzle half steps of a column lie together: 0, or 1..3 for 32, 64, 128 bytes, see place_of
  int words;       // of one lane in a chunk: `kWords` of fragments.cuh
  int64_t chunks;
  int64_t groups;  // 1 or those of the weight scale
  HopperTile hopper;
};

#ifdef __CUDACC__
// A block for each column of tokens, of each tile.
inline dim3 blocks_of_tokens(const Linear& linear, const Quantized& quantized) {
  constexpr int64_t kMostAlongY = 65535;
  const int64_t tiles = (linear.m + quantized.tile_tokens - 1) / quantized.tile_tokens;
  const int64_t along_z = (tiles + kMostAlongY - 1) / kMostAlongY, along_y = (tiles + along_z - 1) / along_z;
  return {static_cast<unsigned>(quantized.tile_tokens), static_cast<unsigned>(along_y), static_cast<unsigned>(along_z)};
}
__device__ __forceinline__ int tile_of_block() { return static_cast<int>(blockIdx.z * gridDim.y + blockIdx.y); }

// Where half step r of a column lies in its tile, in bytes. Among eight columns the pieces of 16 bytes are exchanged so
// that the tensor cores read the same piece of all eight from different banks (the "swizzle" of wgmma's matrix
// descriptor, PTX ISA).
__device__ __forceinline__ int64_t place_of(const Quantized& quantized, int r, int column) {
  const int log = quantized.swizzle, piece = (r ^ column >> (3 - log)) & ((1 << log) - 1);
  return int64_t{16} * ((((r >> log) * quantized.tile_columns + column) << log) + piece);
}
#endif

// Up to so many tokens quantizing them is a matter of latency, from there on of instructions.
constexpr int64_t kManyTokens = 512;

// Blocks that fit on a multiprocessor, of those that quantize few tokens for hopper.cu.
constexpr int kMostQuantizing = 4;

// Writes x as it is in the order of `floating`. cudaError_t.
int launch_arrange(const Linear& linear, const Quantized& quantized, void* stream);

// cudaError_t.
int launch_quantize(const Linear& linear, const Quantized& quantized, const Device& device, void* stream);

// The same of even rows, behind launch_quantize: whether it serves them. Then `error` is a cudaError_t.
bool launch_quantize_even(const Linear& linear, const Quantized& quantized, const Device& device, void* stream,
                          int* error);

}  // namespace bitlab::cuda
