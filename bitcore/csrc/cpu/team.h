// Work that threads do together in phases, with nothing between two phases but an atomic counter. Torch-free: the
// caller owns the threads.
//
// A phase is a number of chunks in any order, once all phases before are done. Threads claim chunks, run what they have
// claimed, and go on. No number of threads is assumed: one that is alone does everything, one that comes late finds
// less to do, and nobody waits for a chunk that no thread has claimed.
//
// The chunks are divided into shares, as many as there are threads to be expected. A thread claims its own share in
// order, then what is left of others': so it reads memory from one place on, and what it prefetches behind the end of a
// chunk is what it needs next.
//
// A thread that waits for the phases before claims further ahead, and reads into its cache what these chunks will read.
// So memory is read at nearly its full speed also while one thread does what only one can do, such as a norm.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

namespace bitlab::cpu {

struct Bytes {
  const void* begin = nullptr;
  int64_t size = 0;
};

class Phase {
 public:
  explicit Phase(int64_t chunks) : chunks_(chunks) {}
  virtual ~Phase() = default;
  virtual void run(int64_t chunk) = 0;

  // The parts of memory that `run` will read and no phase writes, one after the other; an empty one ends them.
  virtual Bytes reads(int64_t /*chunk*/, int64_t /*part*/) const { return {}; }

 private:
  friend class Team;

  // Some chunks, one after the other.
  struct alignas(64) Share {
    int64_t begin = 0, end = 0;
    std::atomic<int64_t> next = 0;
  };

  void divide(int64_t shares) {
    shares_ = std::vector<Share>(static_cast<size_t>(shares));
    for (int64_t i = 0; i < shares; ++i) {
      Share& share = shares_[static_cast<size_t>(i)];
      share.begin = chunks_ * i / shares;
      share.end = chunks_ * (i + 1) / shares;
    }
  }

  void start() {
    for (Share& share : shares_) share.next = share.begin;
    done_ = 0;
  }

  const int64_t chunks_;
  std::vector<Share> shares_;
  alignas(64) std::atomic<int64_t> done_ = 0;
};

class Team {
 public:
  // threads: as many as are to be expected; any number may come.
  explicit Team(int64_t threads) : threads_(threads) {}

  void add(std::unique_ptr<Phase> phase) {
    phase->divide(threads_);
    phases_.push_back(std::move(phase));
  }

  // Before the threads, every time.
  void start() {
    failed_ = false;
    error_ = nullptr;
    arrived_ = 0;
    for (const auto& phase : phases_) phase->start();
  }

  // What every thread calls. What one of them throws ends the work of all, and is thrown by `finish`.
  void work() noexcept {
    try {
      Worker(*this).work();
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }

  // Behind the threads.
  void finish() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  // A claimed chunk, and how far what it reads has been read ahead: `offset` in `part`, `bytes` in all.
  struct Claim {
    size_t phase;
    int64_t chunk;
    int64_t part = 0, offset = 0, bytes = 0;
    bool read = false;
  };

  class Worker {
   public:
    explicit Worker(Team& team) : team_(team), own_(team.arrived_.fetch_add(1) % team.threads_) {}

    void work() {
      while (count_ > 0 || claim()) {
        Claim& now = at(0);
        if (!wait_for(now.phase)) return;
        Phase& phase = *team_.phases_[now.phase];
        phase.run(now.chunk);
        phase.done_.fetch_add(1, std::memory_order_release);
        ahead_ -= now.bytes;
        first_ = (first_ + 1) % kMostClaims;
        --count_;
      }
    }

   private:
    static constexpr int64_t kMostClaims = 64;
    static constexpr int64_t kAhead = int64_t{512} << 10;  // bytes read ahead at most: half of a usual L2
    static constexpr int64_t kPiece = int64_t{2} << 10;    // of them, between two looks at what others have done
    static constexpr int64_t kLine = 64;
    static constexpr int kSpins = 4000;  // then other threads may need the core

    Claim& at(int64_t place) { return claims_[(first_ + place) % kMostClaims]; }

    // A chunk of the first phase that has one, of the own share while there is one.
    bool claim() {
      for (; phase_ < team_.phases_.size(); ++phase_) {
        for (int64_t i = 0; i < team_.threads_; ++i) {
          if (claim_of((own_ + i) % team_.threads_)) return true;
        }
      }
      return false;
    }

    // `claim` by a thread that waits: of its own share only, for others may be free before it is.
    bool claim_ahead() {
      for (; phase_ < team_.phases_.size(); ++phase_) {
        if (count_ == kMostClaims) return false;
        if (claim_of(own_)) return true;
        if (!all_claimed()) return false;
      }
      return false;
    }

    bool claim_of(int64_t number) {
      Phase::Share& share = share_of(number);
      if (!has_chunks(share)) return false;
      const int64_t chunk = share.next.fetch_add(1, std::memory_order_relaxed);
      if (chunk >= share.end) return false;
      at(count_++) = {phase_, chunk};
      return true;
    }

    bool all_claimed() {
      for (int64_t i = 0; i < team_.threads_; ++i) {
        if (has_chunks(share_of(i))) return false;
      }
      return true;
    }

    static bool has_chunks(const Phase::Share& share) { return share.next.load(std::memory_order_relaxed) < share.end; }

    Phase::Share& share_of(int64_t number) { return team_.phases_[phase_]->shares_[static_cast<size_t>(number)]; }

    bool is_ready(size_t phase) const {
      if (phase == 0) return true;
      const Phase& before = *team_.phases_[phase - 1];
      return before.done_.load(std::memory_order_acquire) == before.chunks_;
    }

    // False: another thread has failed.
    bool wait_for(size_t phase) {
      int64_t place = 0;
      int spins = 0;
      while (!is_ready(phase)) {
        if (team_.failed_.load(std::memory_order_relaxed)) return false;
        if (ahead_ < kAhead && (place < count_ || claim_ahead())) {
          read_ahead(at(place), kPiece);
          if (at(place).read) ++place;
        } else if (++spins < kSpins) {
          pause();
        } else {
          std::this_thread::yield();
        }
      }
      return !team_.failed_.load(std::memory_order_relaxed);
    }

    // Reads the next `bytes` of what a claimed chunk will read. Not prefetch instructions, which CPUs drop when too
    // many come at once.
    void read_ahead(Claim& claim, int64_t bytes) {
      const Phase& phase = *team_.phases_[claim.phase];
      while (bytes > 0 && !claim.read) {
        const Bytes part = phase.reads(claim.chunk, claim.part);
        claim.read = part.size == 0;
        const auto* begin = static_cast<const volatile char*>(part.begin);
        const int64_t end = claim.offset + bytes < part.size ? claim.offset + bytes : part.size;
        for (int64_t i = claim.offset; i < end; i += kLine) (void)begin[i];
        bytes -= end - claim.offset;
        ahead_ += end - claim.offset;
        claim.bytes += end - claim.offset;
        claim.offset = end;
        if (end == part.size) ++claim.part, claim.offset = 0;
      }
    }

    static void pause() {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
    }

    Team& team_;
    const int64_t own_;  // share of every phase
    Claim claims_[kMostClaims];
    int64_t first_ = 0, count_ = 0;
    size_t phase_ = 0;  // that the next claim is of
    int64_t ahead_ = 0;
  };

  const int64_t threads_;
  std::vector<std::unique_ptr<Phase>> phases_;
  std::atomic<int64_t> arrived_ = 0;  // threads
  std::atomic<bool> failed_ = false;
  std::exception_ptr error_;
};

}  // namespace bitlab::cpu
