// A step of a decoder: the hidden states of one position a row, through all layers and the head. Torch-free: the caller
// owns the weights, the caches and the threads.
//
//     first     x from tokens or as given, cos and sin of the position
//     a layer   x += y_down    norm, quantize | q, k, v | rotary embedding, cache, attention | norm, quantize | o
//               x += y_o       norm, quantize | gate, up | activation | norm, quantize | down
//     the end   x += y_down    norm, quantize | head
//
// Every | is the end of a phase of team.h. What a step does is laid out once, for all steps.
#pragma once

#include <cstdlib>
#include <deque>
#include <memory>
#include <vector>

#include "decoder_phases.h"

namespace bitlab::cpu {

enum class Activation : int { kSquaredRelu, kOther };

struct DecoderSizes {
  int64_t rows, hidden, heads, kv_heads, head_dim, room, intermediate;
  Dtype dtype;
  Activation activation;
};

// How a kind of layers multiplies.
struct Arithmetic {
  Layout layout;
  Quantization quantization;
};

// The weights' y are set here.
struct DecoderLayer {
  Weight q, k, v, o, gate, up, down;
  Norm input_norm, attention_norm, output_norm, mlp_norm;
  char *keys, *values;  // [rows, kv_heads, room, head_dim]
};

struct DecoderModel {
  Embedding embedding;
  std::vector<DecoderLayer> layers;
  Norm last_norm;
  const Weight* head;  // null: none
  Arithmetic arithmetic, head_arithmetic;
};

class Decoder {
 public:
  // products: the kernel of the layers; others: of everything else. gate: [rows, intermediate], where
  // operators.activate finds it. threads: as many as are to be expected. `ready` tells whether there was memory.
  Decoder(const Kernel& products, const Kernel& others, const DecoderSizes& sizes, const DecoderModel& model,
          char* gate, Operators& operators, int64_t threads)
      : products_kernel_(products),
        kernel_(others),
        sizes_(sizes),
        arithmetic_(model.arithmetic),
        operators_(operators),
        threads_(threads),
        team_(threads),
        gate_(gate) {
    const DecoderSizes& s = sizes_;
    const int64_t width = s.heads * s.head_dim;
    x_ = allocate(s.rows * s.hidden);
    normed_ = allocate(s.rows * std::max({s.hidden, width, s.intermediate}));
    q_ = allocate(s.rows * width);
    k_ = allocate(s.rows * s.kv_heads * s.head_dim);
    v_ = allocate(s.rows * s.kv_heads * s.head_dim);
    turned_ = allocate(s.rows * width);
    attended_ = allocate(s.rows * width);
    added_ = allocate(s.rows * s.hidden);
    up_ = allocate(s.rows * s.intermediate);
    position_.cos.resize(static_cast<size_t>(s.head_dim * item_size(s.dtype)));
    position_.sin.resize(position_.cos.size());
    if (!ready_) return;
    team_.add(std::make_unique<FirstPhase>(s.dtype, s.rows, s.hidden, model.embedding, x_, position_, operators_));
    const char* added = nullptr;
    for (const DecoderLayer& layer : model.layers) {
      add_layer(layer, added);
      added = added_;
    }
    if (model.head != nullptr) head_ = &product(model.head_arithmetic, normed_, s.hidden, {*model.head}, scratch_[4]);
    add_rows(x_, added, s.hidden, model.last_norm, head_ == nullptr ? nullptr : &head_->linear);
    if (head_ != nullptr) add_product(head_->linear);
  }

  bool ready() const { return ready_; }

  // input: tokens, int64 [rows], that the embedding has, or without one their vectors, [rows, hidden]. past: positions
  // in the caches, which have room for another. y: [rows, vocabulary], or without a head the hidden states behind the
  // last norm, [rows, hidden].
  template <class ParallelFor>
  void step(const void* input, int64_t past, void* y, const ParallelFor& parallel_for) {
    position_.input = input;
    position_.past = past;
    if (head_ != nullptr) head_->weights[0].y = y;
    team_.start();
    parallel_for(kMostThreads, 1, [this](int64_t, int64_t) { team_.work(); });
    team_.finish();
    if (head_ == nullptr)
      memcpy(y, normed_, static_cast<size_t>(sizes_.rows * sizes_.hidden * item_size(sizes_.dtype)));
  }

 private:
  static constexpr int64_t kMostThreads = 1024;

  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };

  // n values of the decoder's dtype, or null.
  char* allocate(int64_t n) {
    const int64_t bytes = (n * item_size(sizes_.dtype) + kPlaneAlignment - 1) / kPlaneAlignment * kPlaneAlignment;
    memory_.emplace_back(static_cast<char*>(std::aligned_alloc(kPlaneAlignment, static_cast<size_t>(bytes))));
    ready_ = ready_ && memory_.back() != nullptr;
    return memory_.back().get();
  }

  DecoderProduct& product(const Arithmetic& arithmetic, const char* x, int64_t k, std::vector<Weight> weights,
                          Scratch& scratch) {
    const Activations activations{.x = x,
                                  .dtype = sizes_.dtype,
                                  .m = sizes_.rows,
                                  .k = k,
                                  .x_stride = k,
                                  .quantization = arithmetic.quantization};
    DecoderProduct& result =
        products_.emplace_back(products_kernel_, arithmetic.layout, activations, std::move(weights), scratch);
    ready_ = ready_ && result.linear.reserve(sizes_.rows);
    return result;
  }

  Weight to(Weight weight, char* y) const {
    weight.y = y;
    return weight;
  }

  void add_rows(char* x, const char* added, int64_t n, const Norm& norm, Linear* linear) {
    const RowsPhase::Row row{.x = x, .added = added, .n = n, .norm = norm, .y = normed_, .linear = linear};
    team_.add(std::make_unique<RowsPhase>(kernel_, sizes_.dtype, sizes_.rows, row, operators_));
  }

  void add_product(Linear& linear) { team_.add(std::make_unique<ProductPhase>(linear, sizes_.rows, threads_)); }

  // y of `weights` from norm(x), x += added first.
  void add_normed_product(char* x, const char* added, int64_t n, const Norm& norm, std::vector<Weight> weights,
                          Scratch& scratch) {
    const char* const from = norm.weight == nullptr ? x : normed_;
    Linear& linear = product(arithmetic_, from, n, std::move(weights), scratch).linear;
    add_rows(x, added, n, norm, &linear);
    add_product(linear);
  }

  void add_layer(const DecoderLayer& layer, const char* added) {
    const DecoderSizes& s = sizes_;
    add_normed_product(x_, added, s.hidden, layer.input_norm, {to(layer.q, q_), to(layer.k, k_), to(layer.v, v_)},
                       scratch_[0]);
    const Heads heads{.rows = s.rows,
                      .heads = s.heads,
                      .kv_heads = s.kv_heads,
                      .head_dim = s.head_dim,
                      .room = s.room,
                      .q = q_,
                      .k = k_,
                      .v = v_,
                      .keys = layer.keys,
                      .values = layer.values,
                      .turned = turned_,
                      .y = attended_};
    team_.add(std::make_unique<AttentionPhase>(kernel_, s.dtype, heads, position_));
    add_normed_product(attended_, nullptr, s.heads * s.head_dim, layer.attention_norm, {to(layer.o, added_)},
                       scratch_[1]);
    add_normed_product(x_, added_, s.hidden, layer.output_norm, {to(layer.gate, gate_), to(layer.up, up_)},
                       scratch_[2]);
    team_.add(std::make_unique<ActivationPhase>(kernel_, s.dtype, s.activation == Activation::kSquaredRelu, gate_, up_,
                                                s.rows * s.intermediate, operators_));
    add_normed_product(gate_, nullptr, s.intermediate, layer.mlp_norm, {to(layer.down, added_)}, scratch_[3]);
  }

  const Kernel& products_kernel_;
  const Kernel& kernel_;
  const DecoderSizes sizes_;
  const Arithmetic arithmetic_;
  Operators& operators_;
  const int64_t threads_;
  Team team_;
  bool ready_ = true;
  std::vector<std::unique_ptr<char, Free>> memory_;
  char *x_, *normed_, *q_, *k_, *v_, *turned_, *attended_, *added_, *up_;
  char* const gate_;
  Position position_;
  Scratch scratch_[5];                   // of qkv, o, gate and up, down, head
  std::deque<DecoderProduct> products_;  // stays where it is: phases point into it
  DecoderProduct* head_ = nullptr;
};

}  // namespace bitlab::cpu
