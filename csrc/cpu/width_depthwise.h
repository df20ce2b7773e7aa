#pragma once
#include "lcs/width_conv2d.h"

namespace lcs {

// Whether each output channel has an input channel of its own.
bool width_conv2d_depthwise(const WidthConv2dArgs& args);

void width_depthwise(const WidthConv2dArgs& args, const Parallel& parallel);

// Whether its channels are the lanes of vectors: of channels last, and of planes so small that those of eight channels
// fit the first-level cache. The same bits.
bool width_depthwise_by_lanes(const WidthConv2dArgs& args);
void width_depthwise_lanes(const WidthConv2dArgs& args, const Parallel& parallel);

// Element i of its weight.
float width_depthwise_weight(const WidthWeight& weight, int64_t i);

// No element of y is then larger than the cap.
void width_lower(const WidthConv2dArgs& args, const Parallel& parallel);

// Adds the residual to y, and does ReLU and the cap.
void width_add(const WidthConv2dArgs& args, const Parallel& parallel);

}  // namespace lcs
