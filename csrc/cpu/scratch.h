#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace lcs {

// Memory for `T`s on a cache line's border, of a size that only grows: one per thread and use, kept from call to call,
// as fresh pages cost more than small layers do.
template <class T>
class Scratch {
 public:
  T* reserve(int64_t n) {
    if (n > size_) {
      constexpr size_t kLine = 64;
      memory_.reset(static_cast<T*>(std::aligned_alloc(kLine, (size_t(n) * sizeof(T) + kLine - 1) / kLine * kLine)));
      size_ = memory_ ? n : 0;
      if (!memory_) throw std::bad_alloc();
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> memory_;
  int64_t size_ = 0;
};

}  // namespace lcs
