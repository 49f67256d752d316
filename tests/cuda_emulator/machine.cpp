// Runs blocks: their threads, each on a stack of its own, and their shared memory.
#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "block.h"

// Keeps the registers that a function must keep on this stack, and goes on where another has stopped.
#ifndef __x86_64__
#error "the emulator changes stacks on x86-64 alone"
#endif
extern "C" void emulator_switch_stacks(void** top, void* other_top);
asm(R"(
emulator_switch_stacks:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");
constexpr int kSavedRegisters = 6;

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {
namespace {

constexpr size_t kStackBytes = 512 << 10;  // most of it is never touched
constexpr size_t kArenaBytes = 320 << 10, kArenaAlignment = 1024;
constexpr size_t kGap = 64;  // between variables, where nothing may be read

std::mt19937 random_bits;

std::vector<std::unique_ptr<Fiber>> free_fibers;

std::map<int, uint32_t> offset_of_variable;  // in an arena, of all blocks of a launch
uint32_t first_free_offset;
size_t dynamic_bytes;
const Action* kernel_of_launch;
void* scheduler;  // the top of its stack

void stop() { emulator_switch_stacks(&running->fiber->top, scheduler); }

[[noreturn]] void run_threads() {
  while (true) {
    (*kernel_of_launch)();
    running->copies.end();
    running->copies.finish_all_but(0);
    if (!running->products.under_way.empty()) fail("a thread that ends before its products");
    running->ended = true;
    missing_at_cluster -= !running->arrived_at_cluster;
    const int live = --running->block->live;
    NamedBarrier& all = running->block->barriers[0];
    if (all.arrived > 0 && all.arrived == live) all.arrived = 0, ++all.turn;
    stop();
  }
}

std::unique_ptr<Fiber> new_fiber() {
  auto* const bytes = static_cast<char*>(
      mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  // As if run_threads had just been called: where it would return to, and it itself to be returned to.
  auto** top = reinterpret_cast<void**>(bytes + kStackBytes - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&run_threads);
  return std::make_unique<Fiber>(top - kSavedRegisters);
}

void resume(Thread& thread) {
  running = &thread;
  threadIdx = {thread.index, 0, 0};
  blockIdx = thread.block->index;
  emulator_switch_stacks(&scheduler, thread.fiber->top);
}

void start_block(uint3 index, int rank) {
  auto block = std::make_unique<Block>();
  block->index = index;
  block->rank = rank;
  block->arena = static_cast<uint8_t*>(std::aligned_alloc(kArenaAlignment, kArenaBytes));
  std::memset(block->arena, static_cast<int>(random_below(256)), kArenaBytes);
  __asan_poison_memory_region(block->arena, kArenaBytes);
  __asan_unpoison_memory_region(block->arena + kArenaAlignment, dynamic_bytes);
  block->warps.resize((blockDim.x + kLanes - 1) / kLanes);
  block->live = static_cast<int>(blockDim.x);
  for (unsigned i = 0; i < blockDim.x; ++i) {
    auto thread = std::make_unique<Thread>();
    thread->block = block.get();
    thread->index = i;
    if (free_fibers.empty()) free_fibers.push_back(new_fiber());
    thread->fiber = std::move(free_fibers.back());
    free_fibers.pop_back();
    threads.push_back(std::move(thread));
  }
  blocks.push_back(std::move(block));
}

// Runs the threads until all have ended.
void run_cluster() {
  std::vector<Thread*> order;
  for (const auto& thread : threads) order.push_back(thread.get());
  while (!order.empty()) {
    bool progress = false;
    std::shuffle(order.begin(), order.end(), random_bits);
    for (Thread* thread : order) {
      if (thread->condition && !thread->condition()) continue;
      thread->condition = nullptr;
      resume(*thread);
      progress = true;
    }
    std::erase_if(order, [](const Thread* thread) { return thread->ended; });
    // A copy may take long: sometimes it comes when nothing else can happen.
    if (!copies_to_come.empty() && (!progress || random_below(4) == 0)) {
      std::swap(copies_to_come[random_below(static_cast<uint32_t>(copies_to_come.size()))], copies_to_come.back());
      const Action copy = std::move(copies_to_come.back());
      copies_to_come.pop_back();
      copy();
      progress = true;
    }
    if (!progress) fail("threads that wait for each other forever");
  }
  if (!copies_to_come.empty()) fail("copies that nobody has waited for");
  for (const auto& thread : threads) free_fibers.push_back(std::move(thread->fiber));
  for (const auto& block : blocks) {
    __asan_unpoison_memory_region(block->arena, kArenaBytes);
    std::free(block->arena);
  }
  threads.clear();
  blocks.clear();
}

}  // namespace

void fail(const std::string& what) {
  std::fprintf(stderr, "emulated GPU: %s (block %u, %u, %u, thread %u)\n", what.c_str(), blockIdx.x, blockIdx.y,
               blockIdx.z, threadIdx.x);
  std::abort();
}

void seed(uint32_t seed) { random_bits.seed(seed); }

uint32_t random_below(uint32_t end) { return static_cast<uint32_t>(random_bits() % end); }

void wait_until(std::function<bool()> condition) {
  running->condition = std::move(condition);
  stop();
}

uint8_t* shared_bytes(uint32_t address) { return block_of(address).arena + offset_of(address); }

uint32_t address_of_shared(const void* pointer) {
  const auto offset = static_cast<const uint8_t*>(pointer) - this_block().arena;
  if (offset < 0 || offset >= static_cast<int64_t>(kArenaBytes)) fail("an address that is not in shared memory");
  return static_cast<uint32_t>(offset);
}

void* dynamic_shared() { return this_block().arena + kArenaAlignment; }

void* static_shared(int variable, size_t bytes) {
  const auto [found, is_new] = offset_of_variable.try_emplace(variable, first_free_offset);
  if (is_new) first_free_offset += static_cast<uint32_t>((bytes + kGap + 15) / 16 * 16);
  if (first_free_offset > kArenaBytes) fail("too much shared memory");
  uint8_t* const result = this_block().arena + found->second;
  __asan_unpoison_memory_region(result, bytes);
  return result;
}

void run(dim3 grid, dim3 block, int cluster, size_t dynamic_shared_bytes, const std::function<void()>& kernel) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535 || block.x > 1024)
    fail("a grid that no GPU has");
  gridDim = grid, blockDim = block;
  dynamic_bytes = dynamic_shared_bytes;
  kernel_of_launch = &kernel;
  cluster_size = cluster;
  operands_early = random_below(2) == 0;
  offset_of_variable.clear();
  first_free_offset = static_cast<uint32_t>((kArenaAlignment + dynamic_bytes + kGap + 15) / 16 * 16);
  for (uint32_t z = 0; z < grid.z; z += static_cast<uint32_t>(cluster))
    for (uint32_t y = 0; y < grid.y; ++y)
      for (uint32_t x = 0; x < grid.x; ++x) {
        missing_at_cluster = static_cast<size_t>(cluster) * block.x;
        for (int rank = 0; rank < cluster; ++rank) start_block({x, y, z + static_cast<uint32_t>(rank)}, rank);
        run_cluster();
      }
}

}  // namespace emulator
