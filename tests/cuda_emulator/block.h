// What a running cluster consists of.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "machine.h"

namespace emulator {

constexpr size_t kMostExchanged = 64;  // bytes of a lane

using Action = std::function<void()>;

// Groups of actions that happen in order, some of them under way.
struct Groups {
  std::vector<Action> open;
  std::deque<std::vector<Action>> under_way;

  void add(Action action) { open.push_back(std::move(action)); }
  void end() {
    under_way.push_back(std::move(open));
    open.clear();
  }
  void finish_all_but(size_t count) {
    for (; under_way.size() > count; under_way.pop_front())
      for (const Action& action : under_way.front()) action();
  }
};

// A stack, on which one thread after the other runs, and where its top was when it stopped.
struct Fiber {
  void* top;
};
// `turn` counts how often all have arrived.
struct Warp {
  std::array<std::array<uint8_t, kLanes * kMostExchanged>, 2> values;
  unsigned arrived = 0, turn = 0;
};

struct NamedBarrier {
  int arrived = 0;
  unsigned turn = 0;
};

struct CountingBarrier {
  int expected, missing;
  int64_t bytes = 0;  // that are still to come
  unsigned phase = 0;

  void end_phase_if_complete() {
    if (missing < 0) fail("a barrier at which too many arrive");
    if (missing == 0 && bytes == 0) missing = expected, ++phase;
  }
};

struct Block {
  uint3 index;
  int rank;
  uint8_t* arena;
  std::vector<Warp> warps;
  std::map<int, NamedBarrier> barriers;
  std::map<uint32_t, CountingBarrier> counting;  // by offset
  int live;
};

struct Thread {
  Block* block;
  unsigned index;
  std::unique_ptr<Fiber> fiber;
  std::function<bool()> condition;  // for which it waits
  bool ended = false, arrived_at_cluster = false;
  Groups copies, products;
};

inline std::vector<std::unique_ptr<Block>> blocks;
inline std::vector<std::unique_ptr<Thread>> threads;
inline Thread* running;
inline std::vector<Action> copies_to_come;  // counted at barriers
inline size_t missing_at_cluster;           // live threads that have not arrived
inline int cluster_size;
inline bool operands_early;  // whether products read their operands at once, or when they are waited for

// Of the thread that runs.
inline Block& this_block() { return *running->block; }

// That of a shared address, and the address in it.
inline Block& block_of(uint32_t address) {
  const uint32_t rank = address >> kBlockShift;
  return rank == 0 ? this_block() : *blocks[rank - 1];
}
inline uint32_t offset_of(uint32_t address) { return address & ((1u << kBlockShift) - 1); }

}  // namespace emulator
