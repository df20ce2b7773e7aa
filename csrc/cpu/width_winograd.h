#pragma once
#include "lcs/width_conv2d.h"

namespace lcs {

// Whether a convolution goes by Winograd's F(2 x 2, 3 x 3): x of float32, stride 1, no dilation, one group, and a
// weight that is given transformed.
bool width_conv2d_by_winograd(const WidthConv2dArgs& args);

void width_winograd(const WidthConv2dArgs& args, const Parallel& parallel);

}  // namespace lcs
