#pragma once
#include <algorithm>
#include <future>
#include <system_error>
#include <vector>

#include "lcs/ceil_div.h"
#include "lcs/parallel.h"

namespace lcs {

// An lcs::Parallel of `threads` threads, for callers without a pool of their own. Threads live for one call, so that
// nothing is left behind at a fork or at exit. A call from inside a piece runs serially; the first exception of a piece
// is thrown when all pieces have ended.
inline Parallel fork_join(int threads) {
  return [threads](int64_t n, int64_t grain, const Range& range) {
    static thread_local bool inside = false;
    const int64_t pieces = std::clamp<int64_t>(n / std::max<int64_t>(grain, 1), 1, threads);
    if (pieces == 1 || inside) return serial(n, grain, range);
    const int64_t step = ceil_div(n, pieces);
    const auto run = [&range, n, step](int64_t begin) {
      struct Inside {
        Inside() { inside = true; }
        ~Inside() { inside = false; }
      } scope;
      range(begin, std::min(n, begin + step));
    };
    std::vector<std::future<void>> others;  // whose destructors wait
    others.reserve(size_t(pieces));
    int64_t begin = step;
    try {
      for (; begin < n; begin += step) others.push_back(std::async(std::launch::async, run, begin));
    } catch (const std::system_error&) {  // there are no more threads: what is left is for this one
    }
    run(0);
    for (; begin < n; begin += step) run(begin);
    for (auto& other : others) other.get();
  };
}

}  // namespace lcs
