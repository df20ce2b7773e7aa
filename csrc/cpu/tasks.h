#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "lcs/parallel.h"

namespace lcs {

// task(i, state) of `tasks` tasks: threads, each with a state of its own, do those of their part of the range in order,
// so that what lies next to each other stays in one thread's caches from call to call; then what others have not begun,
// from the ends of their parts.
template <class State, class Task>
void share_tasks(const Parallel& parallel, int64_t tasks, const Task& task) {
  struct alignas(64) Begun {
    std::atomic<bool> is{false};
  };
  std::vector<Begun> begun(static_cast<size_t>(tasks));
  parallel(tasks, 1, [&](int64_t begin, int64_t end) {
    State state;
    const auto take = [&](int64_t i) {
      std::atomic<bool>& is = begun[size_t(i)].is;
      if (!is.load(std::memory_order_relaxed) && !is.exchange(true, std::memory_order_relaxed)) task(i, state);
    };
    for (int64_t i = begin; i < end; ++i) take(i);
    for (int64_t i = begin - 1; i >= 0; --i) take(i);
    for (int64_t i = tasks - 1; i >= end; --i) take(i);
  });
}

}  // namespace lcs
