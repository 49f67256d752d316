#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "../../bitcore/csrc/cpu/team.h"
#include "checks.h"

namespace bitlab::cpu::test {
namespace {

using Values = std::vector<int64_t>;

// Chunk i of a phase: the sum of the phase before, and i, and a weight.
class SumPhase final : public Phase {
 public:
  SumPhase(const Values& from, Values& to, const std::vector<int8_t>& weights, bool fails)
      : Phase(static_cast<int64_t>(to.size())), from_(from), to_(to), weights_(weights), fails_(fails) {}

  void run(int64_t chunk) override {
    if (fails_) throw std::runtime_error("a chunk that fails");
    to_[static_cast<size_t>(chunk)] = sum_of(from_, chunk, weights_);
  }

  Bytes reads(int64_t chunk, int64_t part) const override {
    if (part > 1) return {};
    return {weights_.data() + 100 * chunk, 3000};
  }

  static int64_t sum_of(const Values& values, int64_t chunk, const std::vector<int8_t>& weights) {
    return std::accumulate(values.begin(), values.end(), chunk + weights[static_cast<size_t>(chunk)]) % 1000;
  }

 private:
  const Values& from_;
  Values& to_;
  const std::vector<int8_t>& weights_;
  const bool fails_;
};

bool works(bool fails) {
  const std::vector<int8_t> weights(10000, 3);
  std::vector<Values> values(30);
  Team team(between(1, 4));
  values[0] = {5};
  for (size_t i = 1; i < values.size(); ++i) {
    values[i].resize(static_cast<size_t>(between(0, 2) == 0 ? 1 : between(1, 20)));
    team.add(std::make_unique<SumPhase>(values[i - 1], values[i], weights, fails && i == 20));
  }
  for (int step = 0; step < 3; ++step) {
    team.start();
    std::vector<std::thread> threads;
    for (int64_t i = between(1, 4); i > 0; --i) threads.emplace_back([&team] { team.work(); });
    for (std::thread& thread : threads) thread.join();
    bool failed = false;
    try {
      team.finish();
    } catch (const std::runtime_error&) {
      failed = true;
    }
    if (failed != fails) return false;
    for (size_t i = 1; i < values.size() && !fails; ++i) {
      for (size_t chunk = 0; chunk < values[i].size(); ++chunk) {
        if (values[i][chunk] != SumPhase::sum_of(values[i - 1], static_cast<int64_t>(chunk), weights)) return false;
      }
    }
  }
  return true;
}

}  // namespace

bool check_team() {
  for (int trial = 0; trial < 50; ++trial) {
    if (!works(trial % 10 == 9)) return false;
  }
  return true;
}

}  // namespace bitlab::cpu::test
