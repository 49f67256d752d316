// A decoder with the tensors that it was opened for, all checked.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "packed_weights.h"
#include "parallel.h"
#include "pytorch_operators.h"

namespace bitlab {

constexpr size_t kWeights = 7;  // of a layer: q, k, v, o, gate, up, down
constexpr size_t kNorms = 4;    // of a layer, in front of: q, k and v; o; gate and up; down

inline int32_t torch_dtype(const Tensor& tensor) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

// The memory of a tensor, as it was found.
struct Held {
  explicit Held(const Tensor& its_tensor)
      : tensor(its_tensor), memory(its_tensor.const_data_ptr()), dtype(its_tensor.scalar_type()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  }

  bool is_unchanged() const {
    int64_t now;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &now));
    return now == bytes && tensor.const_data_ptr() == memory && tensor.scalar_type() == dtype;
  }

  Tensor tensor;
  const void* memory;
  ScalarType dtype;
  int64_t bytes;
};

// What decoder_open takes. An empty tensor stands for a norm, a bias or a zero point that is not there.
struct DecoderTensors {
  const std::vector<Tensor>&packed, &scale, &zero_point, &bias;  // kWeights a layer
  const std::vector<Tensor>& norm;                               // kNorms a layer, and the last
  const std::vector<Tensor>&keys, &values;                       // one a layer
  const std::vector<Tensor>& embedding;                          // nothing, or int8 rows and their scale
  const std::vector<Tensor>& head;                               // nothing, or a weight, its scale, its zero point
  const Tensor& eps;                                             // float64, of each norm
  const Tensor& frequencies;                                     // float32 [head_dim / 2], radians a position
};

inline const Tensor* given(const std::vector<Tensor>& tensors, size_t index) {
  return tensors.at(index).numel() == 0 ? nullptr : &tensors[index];
}

class OpenDecoder {
 public:
  OpenDecoder(const DecoderTensors& tensors, double attention_scale, const Mode& mode, const Mode& head_mode,
              ActivationName activation) {
    const size_t layers = tensors.keys.size();
    const size_t weights = kWeights * layers, norms = kNorms * layers + 1;
    require(layers >= 1 && tensors.values.size() == layers && tensors.packed.size() == weights &&
                tensors.scale.size() == weights && tensors.zero_point.size() == weights &&
                tensors.bias.size() == weights && tensors.norm.size() == norms,
            "the lists must have 7 weights, 4 norms and a cache for each layer, and a last norm");
    require(mode.kernel == head_mode.kernel, "the head must be on the kernel of the layers");
    read_sizes(tensors);
    sizes_.activation =
        activation == ActivationName::kSquaredRelu ? cpu::Activation::kSquaredRelu : cpu::Activation::kOther;
    check_vector(tensors.eps, ScalarType::Double, static_cast<int64_t>(norms));
    check_vector(tensors.frequencies, ScalarType::Float, sizes_.head_dim / 2);
    checked_.reserve(weights + 1);
    cpu::DecoderModel model;
    model.layers.resize(layers);
    for (size_t i = 0; i < layers; ++i) add_layer(tensors, mode, i, model.layers[i]);
    model.embedding = embedding_of(tensors.embedding);
    model.last_norm = norm_of(tensors, norms - 1, sizes_.hidden);
    require(model.last_norm.weight != nullptr, "the last norm must be there");
    model.head = head_of(tensors, head_mode);
    model.arithmetic = arithmetic_of(mode);
    model.head_arithmetic = arithmetic_of(head_mode);
    operators_ = std::make_unique<PyTorchOperators>(sizes_, activation, torch_dtype(tensors.keys[0]),
                                                    tensors.frequencies, attention_scale);
    decoder_ = std::make_unique<cpu::Decoder>(kernel_of(mode), cpu::best_kernel(), sizes_, model, operators_->gate(),
                                              *operators_, torch::stable::get_num_threads());
    require(decoder_->ready(), "out of memory for the decoder");
  }

  // input: tokens, int64 [rows], where there is an embedding, else [rows, hidden]. y: [rows, vocabulary or hidden].
  void step(const Tensor& input, Tensor& y, int64_t past) {
    const std::lock_guard lock(mutex_);
    for (const Held& held : held_) require(held.is_unchanged(), "a tensor must be what the decoder was opened for");
    check_input(input);
    require(y.is_cpu() && y.scalar_type() == type_ && y.is_contiguous() && y.dim() == 2 && y.size(0) == sizes_.rows &&
                y.size(1) == outputs_,
            "y must be contiguous [batch, outputs] of the dtype of the norms");
    require(past >= 0 && past < sizes_.room, "the cache must have room");
    for (auto& [weight, bias] : converted_biases_) {
      const std::vector<float> now = as_float32(bias);
      std::copy(now.begin(), now.end(), weight->bias_float32.begin());
    }
    decoder_->step(input.const_data_ptr(), past, y.mutable_data_ptr(), parallel_for);
  }

 private:
  // From the tensors of the first layer; those of all layers are checked against them.
  void read_sizes(const DecoderTensors& tensors) {
    const Tensor& keys = tensors.keys[0];
    require(keys.is_cpu() && is_floating(keys.scalar_type()) && keys.dim() == 4 && keys.numel() > 0,
            "keys must be a floating-point CPU tensor [batch, kv_heads, room, head_dim]");
    for (size_t i = 0; i < kWeights; ++i) require(tensors.packed[i].dim() == 2, "weights must be matrices");
    sizes_.rows = keys.size(0);
    sizes_.kv_heads = keys.size(1);
    sizes_.room = keys.size(2);
    sizes_.head_dim = keys.size(3);
    require(sizes_.head_dim % 2 == 0 && sizes_.head_dim <= cpu::kMaxHeadDim, "head_dim must be even, 2 to 256");
    const int64_t width = tensors.packed[0].size(0);
    sizes_.heads = width / sizes_.head_dim;
    require(width >= 1 && width % (sizes_.head_dim * sizes_.kv_heads) == 0, "heads must be a multiple of kv_heads");
    sizes_.hidden = tensors.packed[3].size(0);
    sizes_.intermediate = tensors.packed[4].size(0);
    require(sizes_.hidden >= 1 && sizes_.intermediate >= 1, "weights must have rows");
    sizes_.dtype = dtype_of<cpu::Dtype>(keys.scalar_type());
    type_ = keys.scalar_type();
  }

  void add_layer(const DecoderTensors& tensors, const Mode& mode, size_t index, cpu::DecoderLayer& layer) {
    const int64_t hidden = sizes_.hidden, width = sizes_.heads * sizes_.head_dim, middle = sizes_.intermediate;
    const int64_t kv_width = sizes_.kv_heads * sizes_.head_dim;
    const int64_t shapes[kWeights][2] = {{width, hidden},  {kv_width, hidden}, {kv_width, hidden}, {hidden, width},
                                         {middle, hidden}, {middle, hidden},   {hidden, middle}};
    cpu::Weight* const places[kWeights] = {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down};
    for (size_t i = 0; i < kWeights; ++i) {
      const size_t at = index * kWeights + i;
      *places[i] = weight_of(mode, shapes[i][1], shapes[i][0], tensors.packed[at], tensors.scale[at],
                             given(tensors.zero_point, at), given(tensors.bias, at));
    }
    const size_t first = index * kNorms;
    layer.input_norm = norm_of(tensors, first, hidden);
    layer.attention_norm = norm_of(tensors, first + 1, width);
    layer.output_norm = norm_of(tensors, first + 2, hidden);
    layer.mlp_norm = norm_of(tensors, first + 3, middle);
    require(layer.input_norm.weight != nullptr && layer.output_norm.weight != nullptr,
            "the norms in front of the blocks must be there");
    layer.keys = cache_of(tensors.keys[index]);
    layer.values = cache_of(tensors.values[index]);
  }

  // rows: 0 for any.
  const cpu::Weight& weight_of(const Mode& mode, int64_t k, int64_t rows, const Tensor& packed, const Tensor& scale,
                               const Tensor* zero_point, const Tensor* bias) {
    const CheckedWeight& checked = checked_.emplace_back(layout_of(mode, k), k, packed, scale, zero_point, bias);
    require(rows == 0 || checked.weight.n == rows, "weights must have the sizes of the first layer");
    held_.emplace_back(packed);
    held_.emplace_back(scale);
    if (zero_point != nullptr) held_.emplace_back(*zero_point);
    if (bias != nullptr) held_.emplace_back(*bias);
    if (!checked.bias_float32.empty()) converted_biases_.emplace_back(&checked_.back(), *bias);
    return checked.weight;
  }

  cpu::Norm norm_of(const DecoderTensors& tensors, size_t index, int64_t n) {
    const Tensor* weight = given(tensors.norm, index);
    if (weight == nullptr) return {nullptr, 0.0f};
    check_vector(*weight, type_, n);
    held_.emplace_back(*weight);
    const auto* const eps = static_cast<const double*>(tensors.eps.const_data_ptr());
    return {weight->const_data_ptr(), static_cast<float>(eps[index])};
  }

  char* cache_of(const Tensor& cache) {
    require(cache.is_cpu() && cache.scalar_type() == type_ && cache.dim() == 4 && cache.size(0) == sizes_.rows &&
                cache.size(1) == sizes_.kv_heads && cache.size(2) == sizes_.room && cache.size(3) == sizes_.head_dim &&
                cache.is_contiguous(),
            "keys and values must be contiguous [batch, kv_heads, room, head_dim], the same for all layers");
    Tensor written = cache;
    auto* const memory = static_cast<char*>(written.mutable_data_ptr());
    held_.emplace_back(cache);
    return memory;
  }

  const cpu::Weight* head_of(const DecoderTensors& tensors, const Mode& mode) {
    const std::vector<Tensor>& head = tensors.head;
    outputs_ = sizes_.hidden;
    if (head.empty()) return nullptr;
    require(head.size() == 2 || head.size() == 3, "head must be nothing, or a weight with its scale and zero point");
    const Tensor* const zero_point = head.size() == 3 ? &head[2] : nullptr;
    const cpu::Weight& weight = weight_of(mode, sizes_.hidden, 0, head[0], head[1], zero_point, nullptr);
    outputs_ = weight.n;
    return &weight;
  }

  cpu::Embedding embedding_of(const std::vector<Tensor>& embedding) {
    if (embedding.empty()) return {nullptr, nullptr, 0};
    require(embedding.size() == 2, "embedding must be nothing, or rows and their scale");
    const int64_t scale_stride =
        checked_scale_stride([](const Tensor& tensor) { return tensor.is_cpu(); }, sizes_.hidden, 1, 0, embedding[0],
                             embedding[1], nullptr, nullptr);
    held_.emplace_back(embedding[0]);
    held_.emplace_back(embedding[1]);
    tokens_ = embedding[0].size(0);
    return {static_cast<const uint8_t*>(embedding[0].const_data_ptr()),
            static_cast<const float*>(embedding[1].const_data_ptr()), scale_stride};
  }

  void check_input(const Tensor& input) const {
    if (tokens_ == 0) {
      require(input.is_cpu() && input.scalar_type() == type_ && input.is_contiguous() && input.dim() == 2 &&
                  input.size(0) == sizes_.rows && input.size(1) == sizes_.hidden,
              "input must be contiguous [batch, hidden_size] of the dtype of the norms");
      return;
    }
    check_vector(input, ScalarType::Long, sizes_.rows);
    const auto* const tokens = static_cast<const int64_t*>(input.const_data_ptr());
    for (int64_t row = 0; row < sizes_.rows; ++row) {
      require(tokens[row] >= 0 && tokens[row] < tokens_, "input must be tokens of the vocabulary");
    }
  }

  static void check_vector(const Tensor& tensor, ScalarType type, int64_t n) {
    require(tensor.is_cpu() && tensor.scalar_type() == type && tensor.dim() == 1 && tensor.size(0) == n &&
                tensor.is_contiguous(),
            "a vector must be a contiguous CPU tensor of the dtype and size that its place asks for");
  }

  cpu::Arithmetic arithmetic_of(const Mode& mode) const {
    auto quantization = static_cast<cpu::Quantization>(mode.quantization);
    if (quantization == cpu::Quantization::kPerTensor) {
      require(sizes_.rows == 1, "activations must be quantized per token, or the batch be 1");
      quantization = cpu::Quantization::kPerToken;
    }
    return {{static_cast<cpu::Format>(mode.format), mode.group_size}, quantization};
  }

  std::mutex mutex_;
  ScalarType type_;  // of activations, norms and caches
  cpu::DecoderSizes sizes_;
  int64_t outputs_, tokens_ = 0;
  std::vector<Held> held_;
  std::vector<CheckedWeight> checked_;
  std::vector<std::pair<CheckedWeight*, Tensor>> converted_biases_;
  std::unique_ptr<PyTorchOperators> operators_;
  std::unique_ptr<cpu::Decoder> decoder_;
};

}  // namespace bitlab
