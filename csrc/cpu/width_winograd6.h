#pragma once
#include "lcs/width_conv2d.h"

namespace lcs {

// Whether a convolution goes by Winograd's F(6 x 6, 3 x 3): x of bfloat16, stride 1, no dilation, one group, and a
// packed weight in a form that the instruction set multiplies; by default where that takes less time than direct
// products.
bool width_conv2d_by_winograd6(const WidthConv2dArgs& args);

void width_winograd6(const WidthConv2dArgs& args, const Parallel& parallel);

}  // namespace lcs
