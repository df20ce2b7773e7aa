#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <utility>

#include "lcs/parallel.h"

namespace lcs {

// What a thread that waits does not take from another on the same core.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Loops that one thread leads and others take part in. A piece that no other has begun is the leader's, so that nobody
// waits for a thread that never comes.
class ParallelRegion {
 public:
  static constexpr int64_t kMembers = 256;  // at most

  // In the leader, which has `share` of kMembers.
  template <class Body>
  void lead(int64_t share, const Body& body) {
    struct End {
      ParallelRegion& region;
      ~End() { region.loop_.store(kEnd, std::memory_order_release); }
    } end{*this};
    share_ = share;
    members_ = (kMembers + share - 1) / share;
    body(Parallel([this](int64_t n, int64_t grain, const Range& range) { run(n, grain, range); }));
  }

  // In another thread, whose share begins at `begin`: until the leader has ended.
  void take_part(int64_t begin) {
    uint64_t seen = 0;
    for (int spins = 0;; ++spins) {
      const uint64_t loop = loop_.load(std::memory_order_acquire);
      if (loop == kEnd) return;
      if (loop == seen) {
        spins % kSpins == kSpins - 1 ? std::this_thread::yield() : relax();
        continue;
      }
      seen = loop;
      take(loop, begin / share_);
    }
  }

 private:
  static constexpr uint64_t kEnd = ~uint64_t{0}, kPieces = 1 << 16;
  static constexpr int kSpins = 1 << 12;  // until a thread that waits lets others run

  void run(int64_t n, int64_t grain, const Range& range) {
    int64_t pieces = std::clamp<int64_t>(n / std::max<int64_t>(grain, 1), 1, members_);
    if (pieces == 1 || leader_ != std::this_thread::get_id() || inside_) return serial(n, grain, range);
    step_ = (n + pieces - 1) / pieces;
    pieces = (n + step_ - 1) / step_;
    n_ = n;
    range_ = &range;
    left_.store(pieces, std::memory_order_relaxed);
    const uint64_t loop = (++loops_) * kPieces + uint64_t(pieces);
    loop_.store(loop, std::memory_order_release);
    inside_ = true;
    take(loop, 0);
    for (int spins = 0; left_.load(std::memory_order_acquire) > 0; ++spins)
      spins % kSpins == kSpins - 1 ? std::this_thread::yield() : relax();
    inside_ = false;
    if (failing_.exchange(false)) std::rethrow_exception(std::exchange(failed_, nullptr));
  }

  // What is left of a loop's pieces, from `first` on. What a loop is of is read once a piece of it is taken, which
  // keeps the leader from the next.
  void take(uint64_t loop, int64_t first) {
    const int64_t pieces = int64_t(loop % kPieces);
    for (int64_t k = 0; k < pieces; ++k) {
      const int64_t piece = (first + k) % pieces;
      uint64_t last = taken_[piece].load(std::memory_order_relaxed);
      if (last >= loop || !taken_[piece].compare_exchange_strong(last, loop, std::memory_order_acq_rel)) continue;
      try {
        (*range_)(piece* step_, std::min(n_, (piece + 1) * step_));
      } catch (...) {
        if (!failing_.exchange(true)) failed_ = std::current_exception();
      }
      left_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  const std::thread::id leader_ = std::this_thread::get_id();
  int64_t share_ = kMembers, members_ = 1;
  uint64_t loops_ = 0;
  bool inside_ = false;
  int64_t n_ = 0, step_ = 1;
  const Range* range_ = nullptr;
  std::atomic<bool> failing_{false};
  std::exception_ptr failed_;
  std::atomic<uint64_t> taken_[kMembers] = {};  // by loop
  alignas(64) std::atomic<uint64_t> loop_{0};
  alignas(64) std::atomic<int64_t> left_{0};
};

// `body(loops)` in this thread, where `loops` is a Parallel whose calls share the threads of one call of `parallel`:
// they wait for each loop in a spin, which is soon over, where `parallel` would have to wake them. `parallel` must run
// a piece of its own in this thread, without waiting for others. Loops inside loops run serially.
template <class Body>
void parallel_region(const Parallel& parallel, const Body& body) {
  if (is_serial(parallel)) return body(parallel);
  ParallelRegion region;
  const std::thread::id leader = std::this_thread::get_id();
  bool led = false;
  std::exception_ptr failed;  // with which `parallel` might do anything
  parallel(ParallelRegion::kMembers, 1, [&](int64_t begin, int64_t end) {
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
