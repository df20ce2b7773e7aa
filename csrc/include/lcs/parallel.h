#pragma once
#include <cstdint>
#include <functional>

namespace lcs {

using Range = std::function<void(int64_t begin, int64_t end)>;

// Runs `range` over [0, n) split among threads, in pieces of at least `grain` but for the last; returns when all are
// done. A kernel's result never depends on how the range was split.
using Parallel = std::function<void(int64_t n, int64_t grain, const Range& range)>;

inline void serial(int64_t n, int64_t, const Range& range) {
  if (n > 0) range(0, n);
}

inline bool is_serial(const Parallel& parallel) {
  using Function = void (*)(int64_t, int64_t, const Range&);
  const Function* const function = parallel.target<Function>();
  return function && *function == serial;
}

}  // namespace lcs
