#pragma once
#include "lcs/line_norm.h"
#include "lcs/sparse_conv2d.h"

namespace lcs {

// A sparse convolution and the norm behind it, with its residual and ReLU.
struct SparseConv2dNormArgs {
  SparseConv2dArgs conv;
  LineNormArgs norm;  // in place: its x and y are conv.y's data. means and rstds are not written; mean and var null
};

// The same bits as of the two, one after the other; images are normalised while they are in the caches.
void sparse_conv2d_norm(const SparseConv2dNormArgs& args, const Parallel& parallel);

}  // namespace lcs
