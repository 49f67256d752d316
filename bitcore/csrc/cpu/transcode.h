// base3 to 2bit, for calls with so many tokens that decoding once pays. Plain C++ in loops that compilers vectorize
// with the flags of the file that includes this one; in an anonymous namespace, so that each file has its own copy.
#pragma once

#include "kernel.h"

namespace bitlab::cpu {
namespace {

// The next digit of a byte of base3, floor(3 * rest / 256), and what is left. In 8 bits throughout: 32 or 64 at a time.
inline uint8_t next_digit(uint8_t& rest) {
  const uint8_t digit = static_cast<uint8_t>((rest > 85) + (rest > 170));
  rest = static_cast<uint8_t>(rest + rest + rest);
  return digit;
}

void base3_to_2bit(const uint8_t* __restrict base3, int64_t bytes, uint8_t* __restrict first_four,
                   uint8_t* __restrict fifth, int64_t quarter) {
  for (int64_t i = 0; i < quarter; ++i) fifth[i] = 0;
  for (int part = 0; part < 4 && part * quarter < bytes; ++part) {
    const int64_t begin = part * quarter, end = begin + quarter < bytes ? begin + quarter : bytes;
    for (int64_t i = begin; i < end; ++i) {
      uint8_t rest = base3[i];
      uint8_t four = next_digit(rest);
      four = static_cast<uint8_t>(four | next_digit(rest) << 2);
      four = static_cast<uint8_t>(four | next_digit(rest) << 4);
      four = static_cast<uint8_t>(four | next_digit(rest) << 6);
      first_four[i] = four;
      fifth[i - begin] = static_cast<uint8_t>(fifth[i - begin] | next_digit(rest) << 2 * part);
    }
  }
}

}  // namespace
}  // namespace bitlab::cpu
