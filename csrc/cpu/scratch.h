#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace lcs {

// Floats on a cache line's border, of a size that only grows: one per thread and use, kept from call to call, as fresh
// pages cost more than small layers do.
class Scratch {
 public:
  float* reserve(int64_t floats) {
    if (floats > size_) {
      constexpr size_t kLine = 64;
      memory_.reset(static_cast<float*>(std::aligned_alloc(kLine, (size_t(floats) * 4 + kLine - 1) / kLine * kLine)));
      size_ = memory_ ? floats : 0;
      if (!memory_) throw std::bad_alloc();
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t size_ = 0;
};

}  // namespace lcs
