#pragma once
#include <cstdint>

#include "block_copy.h"
#include "dispatch.h"
#include "lcs/dtype.h"

// What each instruction set implements of a depthwise convolution of images that lie channel after channel.
namespace lcs {

// Columns `from`, from + step, ... of each row, which go to columns `to`, to + 1, ... of its copy.
struct DepthwisePhase {
  int64_t from, to, columns;
};

// Copies rows to float32. A row, and each phase of it, may write zeros over less than a vector behind it, before what
// belongs there comes.
struct DepthwiseFill {
  const void* from;
  const void* end;  // of what may be read
  float* to;
  int64_t from_stride, to_stride, rows, step;
  const DepthwisePhase* phases;
  int64_t phase_count;
  DType dtype;
};

// y = ReLU(scale * sum over taps of weight * x + bias), at most `cap`, of rows x columns positions. Tap (i, j) of the
// first position is at x[i * tap_stride + taps_at[j]], those of others as far from it as they are; up to `overrun`
// floats behind a row are read.
struct DepthwiseRows {
  const float* x;
  void* y;
  int64_t x_stride, y_stride, rows, columns;
  int64_t tap_stride, kernel_height, kernel_width;
  const int64_t* taps_at;
  const float* weight;
  float scale, bias, floor, cap;
  DType dtype;  // of y
};

// The same of as many channels as there are lanes, a float of each at every position, whose weight, scale and bias are
// vectors too. Tap i of the first position is at x[taps_at[i]].
struct DepthwiseLanes {
  const float* x;
  float* y;
  int64_t x_row, step;      // floats from row to row; positions from column to column
  int64_t y_row, y_column;  // floats from one to the next
  int64_t rows, columns, taps;
  const int64_t* taps_at;
  const float *weight, *scale, *bias;
  float floor, cap;
};

struct WidthDepthwiseKernels {
  int64_t overrun;  // floats that may be read behind a row
  void (*fill)(const DepthwiseFill& fill);
  void (*rows)(const DepthwiseRows& rows);
  void (*lower)(void* x, int64_t n, DType dtype, float cap);  // each x that is larger becomes `cap`
  // Adds a residual to each y, and clamps it.
  void (*add)(void* y, const void* residual, int64_t n, DType dtype, float floor, float cap);
  int64_t lanes;                             // 8 or 1
  void (*load_lanes)(const LaneCopy& copy);  // null of a single lane, as the next one
  void (*store_lanes)(const LaneCopy& copy);
  void (*multiply_lanes)(const DepthwiseLanes& lanes);
};

namespace scalar {
WidthDepthwiseKernels width_depthwise_kernels();
}
namespace avx2 {
WidthDepthwiseKernels width_depthwise_kernels();
}
namespace avx512 {
WidthDepthwiseKernels width_depthwise_kernels();
}

// Of the best instruction set in use.
inline WidthDepthwiseKernels width_depthwise_kernels() {
  return best(scalar::width_depthwise_kernels, avx2::width_depthwise_kernels, avx512::width_depthwise_kernels);
}

}  // namespace lcs
