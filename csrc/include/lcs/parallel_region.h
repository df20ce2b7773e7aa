#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

#include "lcs/ceil_div.h"
#include "lcs/parallel.h"

namespace lcs {

// Loops that one thread leads and others take part in. The first piece is the leader's, and so is each that no other
// has begun: nobody waits for a thread that never comes.
class ParallelRegion {
 public:
  static constexpr int64_t kShares = 1 << 16;  // that threads divide among them

  // In the leader, which has `share` of kShares.
  template <class Body>
  void lead(int64_t share, const Body& body) {
    struct End {
      ParallelRegion& region;
      ~End() { region.loop_.store(kEnd, std::memory_order_release); }
    } end{*this};
    share_ = share;
    taken_ = std::vector<Taken>(size_t(std::min(kMostPieces, ceil_div(kShares, share))));
    body(Parallel([this](int64_t n, int64_t grain, const Range& range) { run(n, grain, range); }));
  }

  // In another thread, whose share begins at `begin`: until the leader has ended.
  void take_part(int64_t begin) {
    uint64_t seen = 0;
    for (Wait wait;; wait.once_more()) {
      const uint64_t loop = loop_.load(std::memory_order_acquire);
      if (loop == kEnd) return;
      if (loop == seen) continue;
      seen = loop;
      take(loop, begin / share_);
      wait = {};
    }
  }

 private:
  static constexpr int64_t kMostPieces = 1 << 10;
  static constexpr uint64_t kEnd = ~uint64_t{0}, kPieces = 2 * kMostPieces;  // beside a loop's number

  // In a spin, and then for whatever else this core is for.
  class Wait {
   public:
    void once_more() { ++spins_ < kSpins ? relax() : std::this_thread::yield(); }

   private:
    static constexpr unsigned kSpins = 1 << 12;
    static void relax() {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    unsigned spins_ = 0;
  };

  struct alignas(64) Taken {
    std::atomic<uint64_t> in{0};  // the last loop in which it was
  };

  void run(int64_t n, int64_t grain, const Range& range) {
    int64_t pieces = std::clamp<int64_t>(n / std::max<int64_t>(grain, 1), 1, int64_t(taken_.size()));
    if (pieces == 1 || leader_ != std::this_thread::get_id() || inside_) return serial(n, grain, range);
    step_ = ceil_div(n, pieces);
    pieces = ceil_div(n, step_);
    n_ = n;
    range_ = &range;
    inside_ = true;
    left_.store(pieces, std::memory_order_relaxed);
    const uint64_t loop = (++loops_) * kPieces + uint64_t(pieces);
    loop_.store(loop, std::memory_order_release);
    run_piece(0);
    take(loop, 1);
    for (Wait wait; left_.load(std::memory_order_acquire) > 0;) wait.once_more();
    inside_ = false;
    if (failing_.exchange(false)) std::rethrow_exception(std::exchange(failed_, nullptr));
  }

  // What is left of a loop's pieces but the first, from `first` on. What the loop is of is read once a piece of it is
  // taken, which keeps the leader from the next.
  void take(uint64_t loop, int64_t first) {
    const int64_t pieces = int64_t(loop % kPieces);
    for (int64_t k = 0; k < pieces; ++k) {
      const int64_t piece = (first + k) % pieces;
      if (piece == 0) continue;
      std::atomic<uint64_t>& taken = taken_[size_t(piece)].in;
      uint64_t last = taken.load(std::memory_order_relaxed);
      if (last < loop && taken.compare_exchange_strong(last, loop, std::memory_order_acq_rel)) run_piece(piece);
    }
  }

  void run_piece(int64_t piece) {
    const int64_t begin = step_ * piece;
    try {
      (*range_)(begin, std::min(n_, begin + step_));
    } catch (...) {
      if (!failing_.exchange(true)) failed_ = std::current_exception();
    }
    left_.fetch_sub(1, std::memory_order_acq_rel);
  }

  const std::thread::id leader_ = std::this_thread::get_id();
  int64_t share_ = kShares;
  uint64_t loops_ = 0;
  bool inside_ = false;
  int64_t n_ = 0, step_ = 1;
  const Range* range_ = nullptr;
  std::vector<Taken> taken_;
  std::atomic<bool> failing_{false};
  std::exception_ptr failed_;
  alignas(64) std::atomic<uint64_t> loop_{0};
  alignas(64) std::atomic<int64_t> left_{0};
};

// `body(loops)` in this thread, where `loops` is a Parallel whose calls share the threads of one call of `parallel`:
// they wait for each loop in a spin, which is soon over, where `parallel` would have to wake them. `parallel` must run
// a piece in this thread whatever the others do, and not fail once one of them has begun. Loops inside a loop's pieces
// run serially.
template <class Body>
void parallel_region(const Parallel& parallel, const Body& body) {
  if (is_serial(parallel)) return body(parallel);
  ParallelRegion region;
  const std::thread::id leader = std::this_thread::get_id();
  bool led = false;
  std::exception_ptr failed;  // with which `parallel` might do anything
  parallel(ParallelRegion::kShares, 1, [&](int64_t begin, int64_t end) {
    if (std::this_thread::get_id() != leader) return region.take_part(begin);
    if (std::exchange(led, true)) return;
    try {
      region.lead(end - begin, body);
    } catch (...) {
      failed = std::current_exception();
    }
  });
  if (failed) std::rethrow_exception(failed);
}

}  // namespace lcs
