#pragma once
#include "lcs/width_conv2d.h"

namespace lcs {

// Whether a convolution goes by Winograd's F(4 x 4, 3 x 3): x of float32, stride 1, no dilation, one group, and a
// packed weight; by default where that takes less time than direct products, whatever the number of images.
bool width_conv2d_by_winograd(const WidthConv2dArgs& args);

void width_winograd(const WidthConv2dArgs& args, const Parallel& parallel);

}  // namespace lcs
