// How threads wait for each other, for copies and for products.
#include "block.h"

namespace emulator {
namespace {

CountingBarrier& counting_barrier(uint32_t address) {
  Block& block = block_of(address);
  const auto found = block.counting.find(offset_of(address));
  if (found == block.counting.end()) fail("a barrier that is not initialized");
  return found->second;
}

}  // namespace

void arrive_at(int id, int count) {
  NamedBarrier& barrier = this_block().barriers[id];
  const int expected = count > 0 ? count : this_block().live;
  if (++barrier.arrived == expected) barrier.arrived = 0, ++barrier.turn;
}

void synchronize_at(int id, int count) {
  NamedBarrier& barrier = this_block().barriers[id];
  const unsigned turn = barrier.turn;
  arrive_at(id, count);
  wait_until([&barrier, turn] { return barrier.turn != turn; });
}

const uint8_t* exchange_bytes(const void* own, size_t bytes) {
  if (bytes > kMostExchanged) fail("lanes that exchange too much");
  Warp& warp = this_block().warps[running->index / kLanes];
  const unsigned turn = warp.turn;
  uint8_t* const values = warp.values[turn % 2].data();
  std::memcpy(values + running->index % kLanes * bytes, own, bytes);
  if (++warp.arrived == kLanes) warp.arrived = 0, ++warp.turn;
  wait_until([&warp, turn] { return warp.turn != turn; });
  return values;
}

void copy_later(std::function<void()> copy) { running->copies.add(std::move(copy)); }
void end_copies() {
  running->copies.end();
  if (random_below(2) == 0) running->copies.finish_all_but(random_below(3));
}
void wait_for_copies(int most_under_way) { running->copies.finish_all_but(static_cast<size_t>(most_under_way)); }

void multiply_later(std::function<void()> product) { running->products.add(std::move(product)); }
void end_products() {
  running->products.end();
  if (operands_early) wait_for_products(0);
}
void wait_for_products(int most_under_way) {
  exchange(0);  // lanes read each other's operands
  running->products.finish_all_but(static_cast<size_t>(most_under_way));
  exchange(0);
}

void init_barrier(uint32_t barrier, int arrivals) {
  if (barrier % 8 != 0) fail("a misaligned barrier");
  this_block().counting[barrier] = {.expected = arrivals, .missing = arrivals};
}

void arrive(uint32_t barrier, uint32_t bytes_to_come) {
  CountingBarrier& counting = counting_barrier(barrier);
  counting.bytes += bytes_to_come;
  --counting.missing;
  counting.end_phase_if_complete();
}

void wait(uint32_t barrier, uint32_t parity) {
  CountingBarrier& counting = counting_barrier(barrier);
  wait_until([&counting, parity] { return counting.phase % 2 != parity; });
}

void copy_and_count(uint32_t barrier, uint32_t bytes, std::function<void()> copy) {
  CountingBarrier& counting = counting_barrier(barrier);
  Thread* const thread = running;
  copies_to_come.push_back([&counting, bytes, copy = std::move(copy), thread] {
    running = thread;  // whose shared memory it is
    copy();
    counting.bytes -= bytes;
    counting.end_phase_if_complete();
  });
}

void arrive_at_cluster() {
  running->arrived_at_cluster = true;
  --missing_at_cluster;
}
void wait_for_cluster() {
  wait_until([] { return missing_at_cluster == 0; });
}

int rank_in_cluster() { return this_block().rank; }
int cluster_along_z() { return static_cast<int>(blockIdx.z) / cluster_size; }

}  // namespace emulator
