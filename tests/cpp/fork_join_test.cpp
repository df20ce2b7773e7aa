#include "lcs/fork_join.h"

#include <atomic>
#include <climits>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>

#include "check.h"

namespace {

// Every index once, in no more pieces than threads, none but the last shorter than the grain.
void check_cover(int threads, int64_t n, int64_t grain) {
  std::vector<std::atomic<int>> times(n);
  std::atomic<int> pieces = 0;
  lcs::fork_join(threads)(n, grain, [&](int64_t begin, int64_t end) {
    CHECK(0 <= begin && begin < end && end <= n);
    CHECK(end == n || end - begin >= grain);
    for (int64_t i = begin; i < end; ++i) ++times[i];
    ++pieces;
  });
  for (const auto& count : times) CHECK(count == 1);
  CHECK(pieces <= threads && (n == 0) == (pieces == 0));
}

void check_threads_run_at_once() {
  std::atomic<int> here = 0;
  std::mutex mutex;
  std::set<std::thread::id> ids;
  lcs::fork_join(3)(3, 1, [&](int64_t, int64_t) {
    ++here;
    while (here < 3) std::this_thread::yield();
    const std::lock_guard lock(mutex);
    ids.insert(std::this_thread::get_id());
  });
  CHECK(ids.size() == 3);
}

void check_nested_runs_serially() {
  const lcs::Parallel parallel = lcs::fork_join(4);
  std::atomic<int> sum = 0;
  parallel(4, 1, [&](int64_t, int64_t) {
    const auto self = std::this_thread::get_id();
    parallel(100, 1, [&](int64_t begin, int64_t end) {
      CHECK(std::this_thread::get_id() == self);
      sum += int(end - begin);
    });
  });
  CHECK(sum == 400);
}

void check_exception_arrives_after_all() {
  std::atomic<int> ended = 0;
  for (const int64_t thrower : {0, 2}) {
    ended = 0;
    bool caught = false;
    try {
      lcs::fork_join(4)(4, 1, [&](int64_t begin, int64_t) {
        if (begin == thrower) throw std::runtime_error("a piece");
        ++ended;
      });
    } catch (const std::runtime_error&) {
      caught = true;
    }
    CHECK(caught && ended == 3);
  }
}

}  // namespace

int main() {
  for (const int threads : {1, 2, 3, 8})
    for (const int64_t n : {0, 1, 2, 7, 100})
      for (const int64_t grain : {int64_t{1}, int64_t{3}, int64_t{100}, int64_t{LLONG_MAX}})
        check_cover(threads, n, grain);
  check_threads_run_at_once();
  check_nested_runs_serially();
  check_exception_arrives_after_all();
}
