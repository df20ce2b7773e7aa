#include "lcs/parallel_region.h"

#include <atomic>
#include <climits>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "lcs/fork_join.h"

namespace {

using lcs::Parallel;

// All pieces in this thread, the last first.
void backwards(int64_t n, int64_t grain, const lcs::Range& range) {
  for (int64_t end = n; end > 0; end -= std::min(end, 100 * grain)) range(std::max<int64_t>(end - 100 * grain, 0), end);
}

// Every index once in each of many loops, whose number of pieces changes, and what one writes is seen by the next.
void check_cover(const Parallel& parallel) {
  constexpr int64_t kLoops = 300, kMost = 100;
  lcs::parallel_region(parallel, [&](const Parallel& loops) {
    std::vector<int64_t> times(kMost);
    int64_t wanted = 0;
    for (int64_t loop = 0; loop < kLoops; ++loop) {
      const int64_t n = loop * 7 % (kMost + 1), grain = loop % 5 == 4 ? LLONG_MAX : loop % 4;
      if (n < kMost)
        loops(kMost - n, 1, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) ++times[size_t(n + i)];
        });
      loops(n, grain, [&](int64_t begin, int64_t end) {
        CHECK(0 <= begin && begin < end && end <= n);
        CHECK(end == n || end - begin >= grain);
        for (int64_t i = begin; i < end; ++i) ++times[size_t(i)];
      });
      ++wanted;
      for (const int64_t count : times) CHECK(count == wanted);
    }
  });
}

void check_threads_run_at_once() {
  lcs::parallel_region(lcs::fork_join(3), [](const Parallel& loops) {
    std::atomic<int> here = 0;
    loops(3, 1, [&](int64_t, int64_t) {
      ++here;
      while (here < 3) std::this_thread::yield();
    });
    CHECK(here == 3);
  });
}

// The leader is the thread that calls.
void check_body_runs_here_once() {
  const auto self = std::this_thread::get_id();
  for (const Parallel& parallel : {Parallel(lcs::serial), Parallel(backwards), lcs::fork_join(4)}) {
    int times = 0;
    lcs::parallel_region(parallel, [&](const Parallel&) {
      CHECK(std::this_thread::get_id() == self);
      ++times;
    });
    CHECK(times == 1);
  }
}

void check_nested_runs_serially() {
  lcs::parallel_region(lcs::fork_join(4), [](const Parallel& loops) {
    std::atomic<int> sum = 0;
    loops(4, 1, [&](int64_t, int64_t) {
      const auto self = std::this_thread::get_id();
      loops(100, 1, [&](int64_t begin, int64_t end) {
        CHECK(std::this_thread::get_id() == self);
        sum += int(end - begin);
      });
    });
    CHECK(sum == 400);
  });
}

// The caller with most of the shares, and eight others.
void uneven(int64_t n, int64_t, const lcs::Range& range) {
  const int64_t mine = n / 2, others = 8, each = (n - mine) / others;
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < others && each > 0; ++i)
    threads.emplace_back([=, &range] { range(mine + i * each, i + 1 < others ? mine + (i + 1) * each : n); });
  each > 0 ? range(0, mine) : range(0, n);
  for (std::thread& thread : threads) thread.join();
}

// A region is led by the thread that calls, however many others take part in the loop that it is.
void check_regions_in_regions() {
  for (const Parallel& parallel : {Parallel(uneven), lcs::fork_join(4)})
    for (int again = 0; again < 20; ++again)
      lcs::parallel_region(parallel, [](const Parallel& outer) {
        std::atomic<int64_t> sum = 0;
        for (int region = 0; region < 20; ++region)
          lcs::parallel_region(outer, [&](const Parallel& inner) {
            for (int loop = 0; loop < 5; ++loop) inner(64, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
          });
        CHECK(sum == 20 * 5 * 64);
      });
}

template <class Work>
bool throws(const Work& work) {
  try {
    work();
  } catch (const std::runtime_error&) {
    return true;
  }
  return false;
}

// Of a piece, after the loop's others have ended, whereupon the next loops run; and of the body, which ends the region.
void check_exceptions() {
  for (const int64_t thrower : {0, 2}) {
    lcs::parallel_region(lcs::fork_join(4), [&](const Parallel& loops) {
      for (int again = 0; again < 2; ++again) {
        std::atomic<int> ended = 0;
        CHECK(throws([&] {
          loops(4, 1, [&](int64_t begin, int64_t) {
            if (begin == thrower) throw std::runtime_error("a piece");
            ++ended;
          });
        }));
        CHECK(ended == 3);
        loops(4, 1, [&](int64_t, int64_t) { ++ended; });
        CHECK(ended == 7);
      }
    });
  }
  lcs::parallel_region(lcs::fork_join(4), [](const Parallel& loops) {
    CHECK(throws([&] { loops(4, 1, [](int64_t, int64_t) { throw std::runtime_error("each piece"); }); }));
  });
  CHECK(throws(
      [] { lcs::parallel_region(lcs::fork_join(4), [](const Parallel&) { throw std::runtime_error("the body"); }); }));
}

}  // namespace

int main() {
  check_cover(lcs::serial);
  check_cover(backwards);
  check_cover(uneven);
  for (const int threads : {1, 2, 3, 8}) check_cover(lcs::fork_join(threads));
  check_threads_run_at_once();
  check_body_runs_here_once();
  check_nested_runs_serially();
  check_regions_in_regions();
  check_exceptions();
}
