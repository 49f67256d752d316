// The operators of a decoder's step on a CPU: a decoder is opened once for its layers and caches, steps from token to
// token, and is closed.
#include <torch/csrc/stable/library.h>

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "open_decoder.h"

namespace {

using namespace bitlab;

// The decoders that are open, by their numbers. Never destroyed: at exit PyTorch may be gone before.
struct OpenDecoders {
  std::mutex mutex;
  std::map<int64_t, std::shared_ptr<OpenDecoder>> by_number;
  int64_t next = 1;
};

OpenDecoders& open_decoders() {
  static auto* const decoders = new OpenDecoders;
  return *decoders;
}

int64_t decoder_open(const std::vector<Tensor>& weight_packed, const std::vector<Tensor>& weight_scale,
                     const std::vector<Tensor>& weight_zero_point, const std::vector<Tensor>& bias,
                     const std::vector<Tensor>& norm, const Tensor& eps, const std::vector<Tensor>& keys,
                     const std::vector<Tensor>& values, const std::vector<Tensor>& embedding,
                     const std::vector<Tensor>& head, const Tensor& frequencies, double attention_scale, int64_t mode,
                     int64_t head_mode, int64_t activation) {
  require(activation >= 0 && activation <= 2, "activation names none");
  auto decoder = std::make_shared<OpenDecoder>(DecoderTensors{weight_packed, weight_scale, weight_zero_point, bias,
                                                              norm, keys, values, embedding, head, eps, frequencies},
                                               attention_scale, Mode(mode), Mode(head_mode),
                                               static_cast<ActivationName>(activation));
  OpenDecoders& all = open_decoders();
  const std::lock_guard lock(all.mutex);
  all.by_number.emplace(all.next, std::move(decoder));
  return all.next++;
}

void decoder_step(const Tensor& input, Tensor y, int64_t decoder, int64_t past) {
  OpenDecoders& all = open_decoders();
  std::shared_ptr<OpenDecoder> found;
  {
    const std::lock_guard lock(all.mutex);
    const auto place = all.by_number.find(decoder);
    require(place != all.by_number.end(), "decoder must be open");
    found = place->second;
  }
  found->step(input, y, past);
}

void decoder_close(int64_t decoder) {
  OpenDecoders& all = open_decoders();
  std::shared_ptr<OpenDecoder> last;  // its tensors are let go outside the lock
  const std::lock_guard lock(all.mutex);
  const auto place = all.by_number.find(decoder);
  if (place == all.by_number.end()) return;
  last = std::move(place->second);
  all.by_number.erase(place);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bitlab, m) {
  m.def(
      "decoder_open(Tensor[] weight_packed, Tensor[] weight_scale, Tensor[] weight_zero_point, Tensor[] bias, "
      "Tensor[] norm, Tensor eps, Tensor[] keys, Tensor[] values, Tensor[] embedding, Tensor[] head, "
      "Tensor frequencies, float attention_scale, int mode, int head_mode, int activation) -> int");
  m.def("decoder_step(Tensor input, Tensor(a!) y, int decoder, int past) -> ()");
  m.def("decoder_close(int decoder) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(bitlab, CPU, m) {
  m.impl("decoder_open", TORCH_BOX(&decoder_open));
  m.impl("decoder_step", TORCH_BOX(&decoder_step));
}

STABLE_TORCH_LIBRARY_IMPL(bitlab, CompositeExplicitAutograd, m) { m.impl("decoder_close", TORCH_BOX(&decoder_close)); }
