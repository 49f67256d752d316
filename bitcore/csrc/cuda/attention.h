// Attention of one token of a decoding step: raw pointers, sizes and a stream, as linear.h.
#pragma once

#include "linear.h"

namespace bitlab::cuda {

// Attention of one position, whose number only the device knows, to those before it and itself.
struct Attention {
  const void *q, *k, *v;    // [batch, heads, head_dim], [batch, kv_heads, head_dim]
  const void *cos, *sin;    // [head_dim], the first half of sin negative
  void *keys, *values;      // [batch, kv_heads, room, head_dim], written at `position`
  const int64_t* position;  // [1], 0 to room - 1
  void* y;                  // [batch, heads, head_dim]
  float* partial;           // workspace of attention_workspace_floats()
  int32_t* arrivals;        // [batch * heads], 0 before and after
  Dtype dtype;              // bfloat16 or float16
  int batch, heads, kv_heads, head_dim;
  int64_t room;
  int splits;  // attention_splits()
};

constexpr int kMostHeadDim = 256;
constexpr int kHeadDimMultiple = 16;

int attention_splits(const Attention& attention, const Device& device);
int64_t attention_workspace_floats(const Attention& attention);

// cudaError_t.
int launch_attention(const Attention& attention, void* stream);

}  // namespace bitlab::cuda
