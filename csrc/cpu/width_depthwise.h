#pragma once
#include "lcs/width_conv2d.h"

namespace lcs {

// Whether a convolution is depthwise and its images lie channel after channel.
bool width_conv2d_depthwise(const WidthConv2dArgs& args);

void width_depthwise(const WidthConv2dArgs& args, const Parallel& parallel);

// Of planes so small that those of eight channels fit the first-level cache: the same bits.
bool width_depthwise_by_lanes(const WidthConv2dArgs& args);
void width_depthwise_lanes(const WidthConv2dArgs& args, const Parallel& parallel);

// No element of y is then larger than the cap.
void width_lower(const WidthConv2dArgs& args, const Parallel& parallel);

}  // namespace lcs
