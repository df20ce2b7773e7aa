#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <span>

#include "check.h"

enum class Guard { behind, before };
inline constexpr Guard kBothGuards[] = {Guard::behind, Guard::before};
inline constexpr std::span<const Guard> kGuards(kBothGuards, kOnlyThreads ? 1 : 2);  // pages see no races

// Memory with a page next to it that faults: right behind its end, or right before its start. Filled with ones, which
// are NaN as floats.
class Guarded {
 public:
  Guarded(size_t bytes, Guard guard) : pages_((bytes + page() - 1) / page() + 2) {
    void* memory = mmap(nullptr, pages_ * page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    base_ = static_cast<char*>(memory);
    char* const last = base_ + (pages_ - 1) * page();
    CHECK(mprotect(base_, page(), PROT_NONE) == 0 && mprotect(last, page(), PROT_NONE) == 0);
    data_ = guard == Guard::behind ? last - bytes : base_ + page();
    std::memset(data_, 0xff, bytes);
  }
  ~Guarded() { munmap(base_, pages_ * page()); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  template <class T = void>
  T* as() const {
    return static_cast<T*>(static_cast<void*>(data_));
  }

 private:
  static size_t page() { return size_t(sysconf(_SC_PAGESIZE)); }

  size_t pages_;
  char* base_;
  char* data_;
};
