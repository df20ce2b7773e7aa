#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "lcs/parallel.h"

namespace lcs {

// task(i, state) of `tasks` tasks: threads, each with a state of its own, take some whenever they are done, in order
// and fewer and fewer.
template <class State, class Task>
void share_tasks(const Parallel& parallel, int64_t tasks, const Task& task) {
  std::atomic<int64_t> next{0};
  parallel(tasks, 1, [&](int64_t, int64_t) {
    State state;
    for (int64_t begin = next.load(std::memory_order_relaxed); begin < tasks;) {
      const int64_t end = begin + std::max<int64_t>((tasks - begin) / 4, 1);
      if (!next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
      for (int64_t i = begin; i < end; ++i) task(i, state);
      begin = next.load(std::memory_order_relaxed);
    }
  });
}

}  // namespace lcs
