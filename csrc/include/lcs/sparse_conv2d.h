#pragma once
#include <cstdint>
#include <functional>
#include <limits>

#include "lcs/dtype.h"
#include "lcs/images.h"
#include "lcs/parallel.h"
#include "lcs/sparse_pack.h"

namespace lcs {

// y = x convolved with a sparse weight, times a scale and plus a bias per channel, plus a residual, then ReLU on
// request; accumulated in float32, rounded once.
struct SparseConv2dArgs {
  Images x, y;  // x is only read
  DType dtype;  // of both
  Axis vertical, horizontal;
  int64_t groups;
  SparsePrepack weight;  // y.channels rows of x.channels / groups * kernel columns; blocks of whole channels
  const float* bias;     // null: none
  bool relu;
  const float* scale = nullptr;                        // null: 1
  float cap = std::numeric_limits<float>::infinity();  // that ReLU ends at
  const void* residual = nullptr;                      // lies as y does; null: none
};

// What is done to images [begin, end) of y once they are whole; by the thread that made them, or by all in `parallel`.
using BehindImages = std::function<void(int64_t begin, int64_t end, const Parallel& parallel)>;

// The order of each sum depends on shapes, how many weights are stored, the instruction set and the size of the
// second-level cache alone. `behind` is called once for every image.
void sparse_conv2d(const SparseConv2dArgs& args, const Parallel& parallel, const BehindImages& behind = nullptr);

}  // namespace lcs
