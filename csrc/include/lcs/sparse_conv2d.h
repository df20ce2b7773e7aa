#pragma once
#include <cstdint>

#include "lcs/dtype.h"
#include "lcs/images.h"
#include "lcs/parallel.h"
#include "lcs/sparse_pack.h"

namespace lcs {

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
