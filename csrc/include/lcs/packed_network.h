#pragma once
#include "lcs/packed_conv2d.h"

namespace lcs {

// A convolution, or the largest of each window, of one image or value of an earlier step.
struct PackedNetworkStep {
  int input, residual = -1;  // values: 0 is x, i + 1 what step i makes; no residual: -1
  bool pools = false;        // then of `conv` only the axes and y's shape are read
  PackedConv2dArgs conv;     // all but the data, numbers of images and distances of x and y, and the residual
};

// Steps in order, of float32 images (channels last where x is pooled); the last one's float32 values are y, channels
// last. Values in between are codes where a convolution has a y_range, and else float32. NaN is the largest in its
// window.
struct PackedNetworkArgs {
  const PackedNetworkStep* steps;
  int64_t count;
  Images x, y;
  int64_t threads;  // that `parallel` has
};

// Bit for bit what packed_conv2d makes, step by step.
void packed_network(const PackedNetworkArgs& args, const Parallel& parallel);

}  // namespace lcs
