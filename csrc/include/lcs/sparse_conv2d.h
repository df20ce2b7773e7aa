#pragma once
#include <cstdint>

#include "lcs/dtype.h"
#include "lcs/parallel.h"
#include "lcs/sparse_pack.h"

namespace lcs {

// Images in memory: `n` of `channels` x `height` x `width`, with the distances between elements. Of the distances
// between channels and between columns one is 1: NCHW or channels last.
struct Images {
  void* data;
  int64_t n, channels, height, width;
  int64_t image_stride, channel_stride, row_stride, column_stride;
};

struct Axis {
  int64_t stride, padding, dilation, kernel;
};

// y = x convolved with a sparse weight, plus bias, then ReLU on request; accumulated in float32, rounded once.
struct SparseConv2dArgs {
  Images x, y;  // x is only read
  DType dtype;  // of both
  Axis vertical, horizontal;
  int64_t groups;
  SparsePrepack weight;  // y.channels rows of x.channels / groups * kernel columns; blocks of whole channels
  const float* bias;     // null: none
  bool relu;
};

// The order of each sum depends on shapes and instruction set alone.
void sparse_conv2d(const SparseConv2dArgs& args, const Parallel& parallel);

}  // namespace lcs
