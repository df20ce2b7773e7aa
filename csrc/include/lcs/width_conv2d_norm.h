#pragma once
#include "lcs/line_norm.h"
#include "lcs/width_conv2d.h"

namespace lcs {

// A convolution at a width and the norm behind it, with its residual and ReLU.
struct WidthConv2dNormArgs {
  WidthConv2dArgs conv;  // y: only its geometry counts, and its data are the norm's y
  LineNormArgs norm;     // x is not read, means and rstds are not written; nor are mean and var given
};

// The same bits as of the two, one after the other; what is between them stays in the caches.
void width_conv2d_norm(const WidthConv2dNormArgs& args, const Parallel& parallel);

}  // namespace lcs
