#pragma once
#include <cstdint>

// What each instruction set implements of the sparse product with a single vector.
namespace lcs {

// y[row] = start + sum over the row's values of value * x[index]; start is the bias at first (null: 0), else y[row].
struct SparseDots {
  const float* x;
  const int32_t* count;
  const uint16_t* index;
  const float* values;
  const float* bias;
  float* y;
  int64_t rows;
  bool first, relu;
};

struct SparseLinearKernels {
  void (*dots)(const SparseDots& dots);
};

namespace scalar {
SparseLinearKernels sparse_linear_kernels();
}
namespace avx2 {
SparseLinearKernels sparse_linear_kernels();
}
namespace avx512 {
SparseLinearKernels sparse_linear_kernels();
}

}  // namespace lcs
