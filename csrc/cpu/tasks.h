#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "lcs/parallel.h"

namespace lcs {

// Tasks that each thread takes from its own range in order, and then from what others have not begun, the last first:
// a thread whose core is slow keeps nobody waiting for long.
class Tasks {
 public:
  struct Some {
    int64_t begin, end;  // equal: none is left
  };

  explicit Tasks(int64_t n) : more_(n > kFew ? size_t(n) : 0), n_(n), taken_(n > kFew ? more_.data() : few_) {}
  Tasks(const Tasks&) = delete;

  class Taker {
   public:
    Taker(Tasks& tasks, int64_t begin, int64_t end) : tasks_(tasks), own_(begin), end_(end), left_(tasks.size()) {}

    Some one() { return some(1); }
    Some half() { return some((end_ - own_ + 1) / 2); }  // of its own that are left, which follow each other

   private:
    Some some(int64_t most) {
      while (own_ < end_ && !tasks_.take(own_)) ++own_;
      if (own_ < end_) {
        const int64_t begin = own_++;
        while (own_ < std::min(end_, begin + most) && tasks_.take(own_)) ++own_;
        return {begin, own_};
      }
      while (left_ > 0)
        if (tasks_.take(--left_)) return {left_, left_ + 1};
      return {0, 0};
    }

    Tasks& tasks_;
    int64_t own_, end_, left_;
  };

 private:
  static constexpr int64_t kFew = 32;  // which take no memory of their own

  int64_t size() const { return n_; }
  bool take(int64_t i) {
    std::atomic<bool>& is = taken_[i].is;
    return !is.load(std::memory_order_relaxed) && !is.exchange(true, std::memory_order_relaxed);
  }

  struct alignas(64) Taken {
    std::atomic<bool> is{false};
  };
  Taken few_[kFew];
  std::vector<Taken> more_;
  const int64_t n_;
  Taken* const taken_;
};

// task(i, state) of `tasks` tasks, which threads with a state of their own take one by one: so what lies next to each
// other stays in one thread's caches from call to call.
template <class State, class Task>
void share_tasks(const Parallel& parallel, int64_t tasks, const Task& task) {
  if (is_serial(parallel)) {
    State state{};
    for (int64_t i = 0; i < tasks; ++i) task(i, state);
    return;
  }
  Tasks shared(tasks);
  parallel(tasks, 1, [&](int64_t begin, int64_t end) {
    State state{};
    Tasks::Taker taker(shared, begin, end);
    for (Tasks::Some some = taker.one(); some.begin < some.end; some = taker.one()) task(some.begin, state);
  });
}

// How many blocks of each image are left to do.
class Left {
 public:
  Left(int64_t images, int64_t blocks) : left_(images) {
    for (std::atomic<int64_t>& left : left_) left = blocks;
  }

  // Whether `blocks` that are done were the last; what other threads wrote of the image is then seen.
  bool none_after(int64_t image, int64_t blocks) { return left_[image].fetch_sub(blocks) == blocks; }

 private:
  std::vector<std::atomic<int64_t>> left_;
};

}  // namespace lcs
