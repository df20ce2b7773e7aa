#pragma once
#include "lcs/line_norm.h"
#include "lcs/max_pool.h"
#include "lcs/width_conv2d.h"

namespace lcs {

// A convolution at a width and the norm behind it, with its residual and ReLU; then max pooling on request.
struct WidthConv2dNormArgs {
  WidthConv2dArgs conv;     // of y only the geometry counts
  LineNormArgs norm;        // x is not read, means and rstds are not written
  const MaxPoolArgs* pool;  // x: as conv's y, which then lies channels last; null: the norm's y is the result
};

// The same bits as of each, one after the other; what is between them stays in the caches.
void width_conv2d_norm(const WidthConv2dNormArgs& args, const Parallel& parallel);

}  // namespace lcs
