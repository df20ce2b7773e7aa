#pragma once
#include <cstdint>

#include "dispatch.h"
#include "lcs/dtype.h"

// What each instruction set implements of max pooling, for which NaN is the largest. `numbers`: each window holds
// either no NaN or nothing else.
namespace lcs {

// y[i] = the largest of x[i], x[stride + i], ..., of so many rows.
struct LargestRow {
  const void* x;
  int64_t stride, rows, n;
  DType dtype;
  float* y;
  bool numbers;
};

// y[o * channels + c] = the largest of x[i * channels + c], of the columns i from o * stride - padding on, `kernel` of
// them, that lie in [0, columns).
struct LargestColumns {
  const float* x;
  int64_t columns, channels;
  int64_t kernel, stride, padding;
  void* y;
  int64_t outputs;
  DType dtype;  // of y
  bool numbers;
};

struct MaxPoolKernels {
  bool (*nan)(const float* x, int64_t n);  // whether there is one, which spoils an image that is rounded
  void (*rows)(const LargestRow& largest);
  void (*columns)(const LargestColumns& largest);
};

namespace scalar {
MaxPoolKernels max_pool_kernels();
}
namespace avx2 {
MaxPoolKernels max_pool_kernels();
}
namespace avx512 {
MaxPoolKernels max_pool_kernels();
}

// Of the best instruction set in use.
inline MaxPoolKernels max_pool_kernels() {
  return best(scalar::max_pool_kernels, avx2::max_pool_kernels, avx512::max_pool_kernels);
}

}  // namespace lcs
