#pragma once
#include "blocks.h"
#include "dispatch.h"
#include "keys.h"
#include "lcs/line_norm.h"

// What each instruction set implements. Vectors that are read or written along with columns have room for kNormRow more
// elements than there are.
namespace lcs {

constexpr int64_t kNormRow = 16;  // elements that are computed on together, on every instruction set

struct NormMoments {
  double mean, squares;  // the mean, and the sum of the squared deviations from it
};

// Of each column: a value near its mean, and the sums of the deviations from that and of their squares.
struct NormColumns {
  float *near, *deviation, *square;
};

// Of each column: (x - mean) * scale + shift.
struct NormLines {
  const float *mean, *scale, *shift;
};

// Rows are the channels of groups that follow each other: (x - mean) * (rstd * weight) + bias.
struct NormGroups {
  int64_t channels;            // of each group
  const float *mean, *rstd;    // of each group
  const float *weight, *bias;  // of each row
};

struct NormRows {
  const void *x, *residual;
  void* y;
  int64_t rows, columns;
  bool relu;
  DType dtype;
};

struct NormGradRows {
  const void *x, *grad;
  void* grad_x;
  int64_t rows, columns;
  bool relu;
  DType dtype;
};

struct LineNormKernels {
  // n elements of `vector` at `alpha`.
  void (*blend)(const LineVector& vector, float alpha, int64_t n, float* to);

  // Of groups of n elements, one behind the other.
  void (*moments)(const void* x, int64_t n, int64_t groups, DType dtype, NormMoments* to);
  // In one pass; `near` is the mean of the first eighth of the rows.
  void (*column_moments)(const void* x, int64_t rows, int64_t columns, DType dtype, const NormColumns& to);
  void (*planes)(const NormRows& rows, const NormGroups& groups);
  void (*columns)(const NormRows& rows, const NormLines& lines);

  // Of each row or column: the gradients behind the ReLU, and their products with x - mean.
  void (*sums)(const NormGradRows& rows, const NormGroups& groups, float* grads, float* products);
  void (*column_sums)(const NormGradRows& rows, const NormLines& lines, float* grads, float* products);
  // grad_x = grad * scale + (x - mean) * slope + offset, of the gradients behind the ReLU; slope and offset of
  // each group or column.
  void (*grad_planes)(const NormGradRows& rows, const NormGroups& groups, const float* slope, const float* offset);
  void (*grad_columns)(const NormGradRows& rows, const NormLines& lines, const float* slope, const float* offset);
};

namespace scalar {
LineNormKernels line_norm_kernels();
}
namespace avx2 {
LineNormKernels line_norm_kernels();
}
namespace avx512 {
LineNormKernels line_norm_kernels();
}

// Of the best instruction set in use.
inline LineNormKernels line_norm_kernels() {
  return best(scalar::line_norm_kernels, avx2::line_norm_kernels, avx512::line_norm_kernels);
}

}  // namespace lcs
