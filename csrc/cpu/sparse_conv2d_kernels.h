#pragma once
#include <cstdint>

#include "lcs/dtype.h"

// What each instruction set implements of the sparse convolution.
namespace lcs {

// Sums of `rows` rows of one block of the weight, over a tile of `vectors` vectors of positions:
// acc[row * acc_stride + position] = start + sum over the row's values of value * x[distance + position].
struct SparseTile {
  const float* x;
  const int32_t* distance;  // of each value; null: offset[index]
  const int64_t* offset;
  const int32_t* count;
  const uint16_t* index;
  const float* values;
  float* acc;
  int64_t acc_stride, rows;
  const float* bias;  // of each row; null: 0
  int vectors;
  bool first;  // start is the bias, else what acc holds
  bool relu;
};

// Copies a rows x columns block between activations of `dtype` and float32. At the source the columns of a row lie
// `from_step` apart. `transposed`: at the target the columns lie `to_stride` apart, and the rows next to each other.
struct SparseCopy {
  const void* from;
  void* to;
  int64_t from_stride, from_step, to_stride, rows, columns;
  DType dtype;
  bool transposed;
};

struct SparseConv2dKernels {
  int lanes, max_vectors;
  void (*accumulate)(const SparseTile& tile);
  void (*load)(const SparseCopy& copy);   // to float32
  void (*store)(const SparseCopy& copy);  // from float32
};

namespace scalar {
SparseConv2dKernels sparse_conv2d_kernels();
}
namespace avx2 {
SparseConv2dKernels sparse_conv2d_kernels();
}
namespace avx512 {
SparseConv2dKernels sparse_conv2d_kernels();
}

}  // namespace lcs
