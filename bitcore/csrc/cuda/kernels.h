// The kernels that multiply, chosen in run.cu, and what they ask of a call.
#pragma once

#include "linear.h"
#include "quantized.h"
#include "row_norm.h"

namespace bitlab::cuda {

inline int64_t bytes_of_row(const Linear& linear) {
  const int per_byte = weights_per_byte(linear.format);
  return (linear.k + per_byte - 1) / per_byte;
}

inline int digits_of(const Linear& linear) { return linear.quantization == Quantization::kNone ? kFloatDigits : 1; }

// Chunks of all lanes, each `words` packed words: 16 * words bytes of a row.
inline int64_t chunks_of(Format format, int64_t k, int words) {
  const int64_t weights = int64_t{16} * words * weights_per_byte(format);
  return (k + weights - 1) / weights;
}

inline int64_t padded_k(Format format, int64_t k, int words) {
  return chunks_of(format, k, words) * 16 * words * weights_per_byte(format);
}

// Whether every row of every weight starts at a multiple of 16 bytes.
inline bool rows_are_aligned(const Linear& linear, int64_t row_bytes) {
  uintptr_t bits = static_cast<uintptr_t>(row_bytes);
  for (int i = 0; i < linear.weight_count; ++i) bits |= reinterpret_cast<uintptr_t>(linear.weights[i].packed);
  return bits % 16 == 0;
}

constexpr int kDecodeColumns = 8;

// Each returns a cudaError_t.
// Whether every block of launch_decode quantizes the tokens itself.
bool decode_can_quantize(const Linear& linear, int digits, const Device& device);
bool decode_can_serve(const Linear& linear, int digits, const Device& device);
int launch_decode(const Linear& linear, const Quantized& quantized, const Device& device, void* stream);
// What decode_can_quantize also says yes to, on the `norm` of linear.x.
bool decode_can_normalize(const Linear& linear, const RowNorm& norm);
int launch_normalizing_decode(const Linear& linear, const RowNorm& norm, const Quantized& quantized,
                              const Device& device, void* stream);

// One token, which every block of launch_gemv quantizes itself.
bool gemv_can_serve(const Linear& linear, const Device& device);
int launch_gemv(const Linear& linear, const Device& device, void* stream);

constexpr int kNarrowColumns = 16;
bool narrow_can_serve(const Linear& linear, int digits, const Device& device);
int launch_narrow(const Linear& linear, const Quantized& quantized, const Device& device, void* stream);

int launch_batch(const Linear& linear, const Quantized& quantized, void* stream);

// Of Quantized: a stage of activations on Hopper is whole rows.
constexpr int hopper_swizzle(Format format) { return format == Format::k2Bit ? 3 : format == Format::kInt4 ? 2 : 1; }
int launch_hopper(const Linear& linear, const Quantized& quantized, const Device& device, void* stream);
int launch_hopper_turns(const Linear& linear, const Quantized& quantized, const Device& device, void* stream);

}  // namespace bitlab::cuda
