#pragma once
#include <cstdint>

// What each instruction set implements of a network's float32 steps.
namespace lcs {

// y[c] = the sum of x[i * stride + c] over the positions i, in order; of each times scale[c], plus shift[c], where
// there are these, and after ReLU on request.
struct PositionSums {
  const float* x;
  int64_t stride, positions, channels;
  float* y;
  const float *scale, *shift;  // both, or null
  bool relu;
};

// y[m * y_stride + r] = the product of row r of the weight with row m of x, plus bias, then ReLU on request.
struct DenseRows {
  const float* weight;  // rows x columns
  int64_t rows, columns;
  const float* x;  // n x columns
  int64_t n;
  const float* bias;  // of each row; null: none
  bool relu;
  float* y;
  int64_t y_stride;
};

struct PackedNetworkKernels {
  void (*sums)(const PositionSums& sums);
  void (*dense)(const DenseRows& dense);
};

namespace scalar {
PackedNetworkKernels packed_network_kernels();
}
namespace avx2 {
PackedNetworkKernels packed_network_kernels();
}

}  // namespace lcs
