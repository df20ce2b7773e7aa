#pragma once
#include <cstdint>

namespace lcs {

enum class DType { float32, bfloat16, float16 };

// Storage only; the conversions belong to the kernels of each instruction set.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

constexpr int64_t size_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

// p + n elements; null stays null.
inline const void* advance(const void* p, int64_t n, DType dtype) {
  return p ? static_cast<const char*>(p) + n * size_of(dtype) : p;
}
inline void* advance(void* p, int64_t n, DType dtype) { return p ? static_cast<char*>(p) + n * size_of(dtype) : p; }

}  // namespace lcs
