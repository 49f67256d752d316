// The phases of a decoder's step (decoder.h): rows between products, products, attention.
#pragma once

#include <cstring>
#include <vector>

#include "factors.h"
#include "linear.h"
#include "team.h"

namespace bitlab::cpu {

// What the caller computes, because PyTorch's results depend on an order of sums and on approximations of its own.
class Operators {
 public:
  virtual ~Operators() = default;
  virtual float* squares(int64_t row, int64_t n) = 0;  // memory for as many
  virtual float sum_of_squares(int64_t row, int64_t n) = 0;
  virtual void activate() = 0;                                       // the output of the gate, in place
  virtual void turn_to(int64_t position, void* cos, void* sin) = 0;  // rotary embedding, [head_dim] each
};

struct Norm {
  const void* weight;  // null: no norm
  float eps;
};

// Weights that read the same x, and x quantized.
struct DecoderProduct {
  DecoderProduct(const Kernel& kernel, const Layout& layout, const Activations& activations,
                 std::vector<Weight> its_weights, Scratch& scratch)
      : weights(std::move(its_weights)),
        linear(kernel, layout, activations, weights.data(), static_cast<int64_t>(weights.size()), scratch) {}

  std::vector<Weight> weights;
  Linear linear;
};

// What a step is about, the same for all layers.
struct Position {
  const void* input = nullptr;  // tokens, int64 [rows], or their vectors, [rows, n]
  int64_t past = 0;
  std::vector<char> cos, sin;  // [head_dim]
};

// int8 rows of a table, code - 128 times a scale, as the vectors of tokens.
struct Embedding {
  const uint8_t* codes;  // [tokens, n]; null: x comes as it is
  const float* scale;
  int64_t scale_stride;  // 0 for one scale for all rows
};

// What a step begins with. Chunk 0 is the position, the others are rows of x.
class FirstPhase final : public Phase {
 public:
  FirstPhase(Dtype dtype, int64_t rows, int64_t n, const Embedding& embedding, char* x, Position& position,
             Operators& operators)
      : Phase(1 + rows),
        dtype_(dtype),
        n_(n),
        embedding_(embedding),
        x_(x),
        position_(position),
        operators_(operators) {}

  void run(int64_t chunk) override {
    if (chunk == 0) return operators_.turn_to(position_.past, position_.cos.data(), position_.sin.data());
    const int64_t row = chunk - 1;
    char* const x = x_ + row * n_ * item_size(dtype_);
    if (embedding_.codes == nullptr) {
      memcpy(x, static_cast<const char*>(position_.input) + row * n_ * item_size(dtype_),
             static_cast<size_t>(n_ * item_size(dtype_)));
      return;
    }
    const int64_t token = static_cast<const int64_t*>(position_.input)[row];
    const uint8_t* const codes = embedding_.codes + token * n_;
    const float scale = embedding_.scale[token * embedding_.scale_stride];
    switch (dtype_) {
      case Dtype::kFloat32: return look_up<Dtype::kFloat32>(codes, scale, x);
      case Dtype::kBFloat16: return look_up<Dtype::kBFloat16>(codes, scale, x);
      default: return look_up<Dtype::kFloat16>(codes, scale, x);
    }
  }

 private:
  template <Dtype dtype>
  void look_up(const uint8_t* codes, float scale, void* x) const {
    for (int64_t i = 0; i < n_; ++i) store<dtype>(x, i, static_cast<float>(codes[i] - 128) * scale);
  }

  const Dtype dtype_;
  const int64_t n_;
  const Embedding embedding_;
  char* const x_;
  Position& position_;
  Operators& operators_;
};

// A chunk is a row of x [rows, n]: x += added, y = norm(x), and y quantized for a product.
class RowsPhase final : public Phase {
 public:
  struct Row {
    char* x;
    const char* added;  // null: nothing
    int64_t n;
    Norm norm;
    char* y;         // not written without a norm
    Linear* linear;  // null: nothing is quantized
  };

  RowsPhase(const Kernel& kernel, Dtype dtype, int64_t rows, const Row& row, Operators& operators)
      : Phase(rows), kernel_(kernel), dtype_(dtype), row_(row), operators_(operators) {}

  void run(int64_t row) override {
    const int64_t n = row_.n, place = row * n * item_size(dtype_);
    char* const x = row_.x + place;
    if (row_.added != nullptr) kernel_.combine(Combination::kAdd, row_.added + place, n, x, dtype_);
    if (row_.norm.weight != nullptr) {
      kernel_.square(x, n, operators_.squares(row, n), dtype_);
      const float factor = rms_factor(operators_.sum_of_squares(row, n), n, row_.norm.eps);
      kernel_.normalize(x, row_.norm.weight, n, factor, row_.y + place, dtype_);
    }
    if (row_.linear != nullptr) row_.linear->quantize(0, row);
  }

 private:
  const Kernel& kernel_;
  const Dtype dtype_;
  const Row row_;
  Operators& operators_;
};

// A chunk is some rows of the weights.
class ProductPhase final : public Phase {
 public:
  ProductPhase(Linear& linear, int64_t rows, int64_t threads) : ProductPhase(linear, rows, units_of(linear, threads)) {}

  void run(int64_t chunk) override { linear_.multiply(0, rows_, chunk * units_, end_of(chunk)); }

  Bytes reads(int64_t chunk, int64_t part) const override {
    Bytes found;
    linear_.for_each_read(chunk * units_, end_of(chunk), [&](const void* begin, int64_t size) {
      if (part-- == 0) found = {begin, size};
    });
    return found;
  }

 private:
  struct Units {
    int64_t count;
  };

  ProductPhase(Linear& linear, int64_t rows, Units units)
      : Phase((linear.units() + units.count - 1) / units.count), linear_(linear), rows_(rows), units_(units.count) {}

  // Small enough that no thread waits long for the last chunk, large enough to stream from memory.
  static Units units_of(const Linear& linear, int64_t threads) {
    constexpr int64_t kFewest = int64_t{16} << 10, kMost = int64_t{512} << 10, kChunksPerThread = 16;
    const int64_t share = linear.units() * linear.unit_bytes() / (threads * kChunksPerThread);
    return {std::max<int64_t>(1, std::clamp(share, kFewest, kMost) / linear.unit_bytes())};
  }

  int64_t end_of(int64_t chunk) const { return std::min((chunk + 1) * units_, linear_.units()); }

  Linear& linear_;
  const int64_t rows_, units_;
};

// y = activation(gate) * up of all rows: relu(gate)**2 in chunks, others by PyTorch at once.
class ActivationPhase final : public Phase {
 public:
  ActivationPhase(const Kernel& kernel, Dtype dtype, bool relu_squared, char* gate, const char* up, int64_t n,
                  Operators& operators)
      : Phase(relu_squared ? (n + kChunk - 1) / kChunk : 1),
        kernel_(kernel),
        dtype_(dtype),
        relu_squared_(relu_squared),
        gate_(gate),
        up_(up),
        n_(n),
        operators_(operators) {}

  void run(int64_t chunk) override {
    if (!relu_squared_) {
      operators_.activate();
      return kernel_.combine(Combination::kMultiply, up_, n_, gate_, dtype_);
    }
    const int64_t begin = chunk * kChunk * item_size(dtype_);
    kernel_.combine(Combination::kMultiplySquaredRelu, up_ + begin, std::min(kChunk, n_ - chunk * kChunk),
                    gate_ + begin, dtype_);
  }

 private:
  static constexpr int64_t kChunk = 2048;

  const Kernel& kernel_;
  const Dtype dtype_;
  const bool relu_squared_;
  char* const gate_;
  const char* const up_;
  const int64_t n_;
  Operators& operators_;
};

// What attention of one position reads and writes. keys and values, [rows, kv_heads, room, head_dim], are the cache.
struct Heads {
  int64_t rows, heads, kv_heads, head_dim, room;
  const char *q, *k, *v;  // [rows, heads or kv_heads, head_dim]
  char *keys, *values;
  char* turned;  // [rows, heads, head_dim], for q
  char* y;       // the same
};

// A chunk is a row's head of keys and values, with the heads that attend to it.
class AttentionPhase final : public Phase {
 public:
  AttentionPhase(const Kernel& kernel, Dtype dtype, const Heads& heads, const Position& position)
      : Phase(heads.rows * heads.kv_heads), kernel_(kernel), dtype_(dtype), heads_(heads), position_(position) {}

  void run(int64_t chunk) override {
    const int64_t group = heads_.heads / heads_.kv_heads, past = position_.past;
    char* const keys = heads_.keys + cache_bytes() * chunk;
    char* const values = heads_.values + cache_bytes() * chunk;
    turn(heads_.k + chunk * head_bytes(), keys + past * head_bytes());
    memcpy(values + past * head_bytes(), heads_.v + chunk * head_bytes(), static_cast<size_t>(head_bytes()));
    thread_local std::vector<float> scores;
    scores.resize(static_cast<size_t>(kMaxHeads * (past + 1)));
    for (int64_t head = chunk * group, end = head + group; head < end; head += kMaxHeads) {
      const int64_t count = std::min(kMaxHeads, end - head);
      for (int64_t h = head; h < head + count; ++h) turn(heads_.q + h * head_bytes(), heads_.turned + h * head_bytes());
      kernel_.attend({.q = heads_.turned + head * head_bytes(),
                      .keys = keys,
                      .values = values,
                      .heads = count,
                      .head_dim = heads_.head_dim,
                      .length = past + 1,
                      .q_stride = heads_.head_dim,
                      .key_stride = heads_.head_dim,
                      .value_stride = heads_.head_dim,
                      .scale = score_factor(heads_.head_dim),
                      .scores = scores.data(),
                      .y = heads_.y + head * head_bytes()},
                     dtype_);
    }
  }

  Bytes reads(int64_t chunk, int64_t part) const override {
    if (part > 1 || position_.past == 0) return {};
    return {(part == 0 ? heads_.keys : heads_.values) + cache_bytes() * chunk, position_.past * head_bytes()};
  }

 private:
  int64_t head_bytes() const { return heads_.head_dim * item_size(dtype_); }
  int64_t cache_bytes() const { return heads_.room * head_bytes(); }

  void turn(const void* from, void* to) const {
    kernel_.rotate(from, position_.cos.data(), position_.sin.data(), heads_.head_dim, to, dtype_);
  }

  const Kernel& kernel_;
  const Dtype dtype_;
  const Heads heads_;
  const Position& position_;
};

}  // namespace bitlab::cpu
