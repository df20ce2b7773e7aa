#pragma once
#include "lcs/width_conv2d.h"

namespace lcs {

// Whether a convolution goes by Winograd's F(3 x 3, 4 x 4) on x split by its stride: 7 x 7 or 8 x 8 taps at stride 2 of
// few channels, as networks begin with, no dilation, one group, and a packed weight of floats; by default where an
// image has enough tiles and the result enough channels.
bool width_conv2d_strided(const WidthConv2dArgs& args);

constexpr int64_t kWidthStridedRows = 3;  // of y that are computed together: from a multiple of it on

void width_strided(const WidthConv2dArgs& args, const Parallel& parallel);

}  // namespace lcs
