// An emulated GPU: runs the blocks of a kernel one after the other, those of a cluster together, each of their
// threads on a stack of its own. Threads change over where they wait for each other, in random order.
//
//     thread      runs until it waits for a condition; then any other thread whose condition holds goes on
//     warp        exchange() hands a value of each lane to all lanes: shuffles, products and votes are made of it
//     copies      what a thread has asked for happens at some later time, at the latest when somebody waits for it
//     shared      memory of a block is full of some byte at first, and AddressSanitizer knows its end
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

#include "vectors.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulator {

constexpr int kLanes = 32;
constexpr uint32_t kBlockShift = 24;  // of a shared address: above it 1 + the block's rank, or 0 for one's own

struct Gpu {
  size_t shared_memory;  // bytes that a block may ask for
  bool has_context;      // of the host's thread: from its first call on that needs one
};
inline Gpu gpu;

// Ends the process: the kernel does what no GPU allows.
[[noreturn]] void fail(const std::string& what);

// The order in which things happen is a matter of chance, and the same again with the same seed.
void seed(uint32_t seed);
uint32_t random_below(uint32_t end);

// Of the thread that runs: the others go on until the condition holds.
void wait_until(std::function<bool()> condition);

// The barrier `id` of the block, for `count` threads; 0: all that have not ended.
void arrive_at(int id, int count);
void synchronize_at(int id, int count);

// `bytes` of each lane of the warp, one lane after the other; valid until the warp's next exchange but one.
const uint8_t* exchange_bytes(const void* own, size_t bytes);

template <typename Value>
std::array<Value, kLanes> exchange(const Value& own) {
  std::array<Value, kLanes> all;
  std::memcpy(all.data(), exchange_bytes(&own, sizeof(Value)), sizeof all);
  return all;
}

// Shared memory of the thread's block, and by its address that of any block of the cluster.
uint8_t* shared_bytes(uint32_t address);
uint32_t address_of_shared(const void* pointer);
template <typename Value>
Value& at_shared(uint32_t address) {
  if (address % sizeof(Value) != 0) fail("a misaligned address of shared memory");
  return *reinterpret_cast<Value*>(shared_bytes(address));
}
void* dynamic_shared();
void* static_shared(int variable, size_t bytes);

// Copies of a thread that it waits for itself, in groups.
void copy_later(std::function<void()> copy);
void end_copies();
void wait_for_copies(int most_under_way);

// The same of products of the tensor cores of a warpgroup.
void multiply_later(std::function<void()> product);
void end_products();
void wait_for_products(int most_under_way);

// Barriers in shared memory that count arrivals and bytes.
void init_barrier(uint32_t barrier, int arrivals);
void arrive(uint32_t barrier, uint32_t bytes_to_come);
void wait(uint32_t barrier, uint32_t parity);
// Counts `bytes` at `barrier` once `copy` has happened, at some time.
void copy_and_count(uint32_t barrier, uint32_t bytes, std::function<void()> copy);

void arrive_at_cluster();
void wait_for_cluster();
int rank_in_cluster();
int cluster_along_z();

// Returns when all blocks have ended.
void run(dim3 grid, dim3 block, int cluster, size_t dynamic_shared_bytes, const std::function<void()>& kernel);

}  // namespace emulator
