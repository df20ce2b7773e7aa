#pragma once
#include <cstdint>

#include "lcs/images.h"
#include "lcs/parallel.h"

namespace lcs {

// The gradient of a dense float32 weight of 3 x 3 taps at stride 1, without dilation, in one group.
struct WidthGradientArgs {
  Images grad, x;       // only read; float32, compact; of the result, and what was convolved
  int64_t above, left;  // the padding
  float* to;            // (grad.channels, x.channels, 3, 3)
};

// By Winograd's products: the order of each sum depends on shapes and instruction set alone.
void width_gradient(const WidthGradientArgs& args, const Parallel& parallel);

}  // namespace lcs
