// matmul of the table, from two names that the including file has defined in an anonymous namespace before:
//
//     rows_at_once<Codes>(vectors)                                          rows of the tile for 1..4 vectors
//     multiply<Codes, kVectors, kRows>(const Product&, x_q, w, acc)         one tile: kRows rows with kVectors vectors
//     TwoBit, Base3, Int4, Int8                                             its codes of the four formats
#pragma once

#include "kernel.h"

namespace bitlab::cpu {
namespace {

constexpr int64_t kVectorTile = 4;

template <class Codes, int kVectors>
void multiply_rows(const Product& p, int64_t vector) {
  constexpr int kRows = rows_at_once<Codes>(kVectors);
  const int8_t* x_q = p.x_q + vector * p.vector_stride;
  int32_t* acc = p.acc + vector * p.acc_stride;
  int64_t row = 0;
  for (; row + kRows <= p.n; row += kRows) {
    multiply<Codes, kVectors, kRows>(p, x_q, p.w + row * p.row_stride, acc + row);
  }
  for (; row < p.n; ++row) multiply<Codes, kVectors, 1>(p, x_q, p.w + row * p.row_stride, acc + row);
}

template <class Codes>
void matmul_of(const Product& p) {
  int64_t vector = 0;
  for (; vector + kVectorTile <= p.m; vector += kVectorTile) multiply_rows<Codes, kVectorTile>(p, vector);
  switch (p.m - vector) {
    case 1: return multiply_rows<Codes, 1>(p, vector);
    case 2: return multiply_rows<Codes, 2>(p, vector);
    case 3: return multiply_rows<Codes, 3>(p, vector);
    default: return;
  }
}

void matmul(Format format, const Product& product) {
  switch (format) {
    case Format::k2Bit: return matmul_of<TwoBit>(product);
    case Format::kBase3: return matmul_of<Base3>(product);
    case Format::kInt4: return matmul_of<Int4>(product);
    default: return matmul_of<Int8>(product);
  }
}

}  // namespace
}  // namespace bitlab::cpu
