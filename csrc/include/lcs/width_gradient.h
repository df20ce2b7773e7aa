#pragma once
#include <cstdint>

#include "lcs/images.h"
#include "lcs/parallel.h"

// Gradients of a convolution of float32 with a dense weight of 3 x 3 taps at stride 1, without dilation, in one group.
// The order of each sum depends on shapes and instruction set alone.
namespace lcs {

// To the weight.
struct WidthGradientArgs {
  Images grad, x;       // only read; float32, compact; of the result, and what was convolved
  int64_t above, left;  // the padding
  float* to;            // (grad.channels, x.channels, 3, 3)
};

// By Winograd's products.
void width_gradient(const WidthGradientArgs& args, const Parallel& parallel);

// To x.
struct WidthInputGradientArgs {
  Images grad, to;      // the first only read; float32, compact
  int64_t above, left;  // the padding, at most 2
  const float* weight;  // (grad.channels, to.channels, 3, 3)
};

// As width_conv2d convolves grad with the turned weight, which is packed in each call.
void width_input_gradient(const WidthInputGradientArgs& args, const Parallel& parallel);

}  // namespace lcs
