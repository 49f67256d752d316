// Portable C++: no intrinsics, any CPU, compiled with the baseline flags. The loops are written so that a compiler
// vectorizes them.
//
// One step takes up to 256 bytes of a weight row and one plane: code j of each byte is widened to int16 once and
// multiplied with byte i of plane j of every vector. Bytes per weight: 1/4 (2bit), plus 2 in L1.
// Instructions per 256 weights and vector with SSE2: 16 loads, 64 to widen x_q, 32 pmaddwd, 32 paddd.
#include "activations.h"
#include "transcode.h"

namespace bitlab::cpu {
namespace {

constexpr int64_t kDecoded = 256;  // bytes of a row that are decoded together

template <int kBits>
struct BitFields {
  static constexpr int kPlanes = 8 / kBits;
  const uint8_t* bytes;
  void next(int plane, int64_t count, int16_t* codes) {
    for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<int16_t>(bytes[i] >> kBits * plane & ((1 << kBits) - 1));
  }
};

struct Base3 {
  static constexpr int kPlanes = 5;
  const uint8_t* bytes;
  uint8_t rest[kDecoded];
  void next(int plane, int64_t count, int16_t* codes) {
    const uint8_t* from = plane == 0 ? bytes : rest;
    for (int64_t i = 0; i < count; ++i) {
      const int three = 3 * from[i];
      codes[i] = static_cast<int16_t>(three >> 8);
      rest[i] = static_cast<uint8_t>(three);
    }
  }
};

// Products of int16 summed in int32: compilers know this loop (pmaddwd, smlal).
int32_t dot(const int16_t* codes, const int8_t* x, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<int32_t>(codes[i]) * static_cast<int16_t>(x[i]);
  return sum;
}

template <class Codes>
void matmul_of(const Product& p) {
  int16_t codes[kDecoded];
  for (int64_t row = 0; row < p.n; ++row) {
    for (int64_t v = 0; v < p.m; ++v) p.acc[v * p.acc_stride + row] = 0;
    for (int64_t begin = 0; begin < p.bytes; begin += kDecoded) {
      const int64_t count = p.bytes - begin < kDecoded ? p.bytes - begin : kDecoded;
      Codes decoder;
      decoder.bytes = p.w + row * p.row_stride + begin;
      for (int j = 0; j < Codes::kPlanes; ++j) {
        decoder.next(j, count, codes);
        for (int64_t v = 0; v < p.m; ++v) {
          p.acc[v * p.acc_stride + row] += dot(codes, p.x_q + v * p.vector_stride + j * p.plane + begin, count);
        }
      }
    }
  }
}

void matmul(Format format, const Product& product) {
  switch (format) {
    case Format::k2Bit: return matmul_of<BitFields<2>>(product);
    case Format::kBase3: return matmul_of<Base3>(product);
    case Format::kInt4: return matmul_of<BitFields<4>>(product);
    default: return matmul_of<BitFields<8>>(product);
  }
}

}  // namespace
}  // namespace bitlab::cpu

#include "whole_kernel.h"

namespace bitlab::cpu {

constinit const Kernel kPortable = whole_kernel("portable", 0, 128);

}  // namespace bitlab::cpu
