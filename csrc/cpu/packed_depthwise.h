#pragma once
#include "lcs/packed_conv2d.h"

namespace lcs {

// packed_conv2d of a depthwise weight, of at least one output.
void packed_depthwise(const PackedConv2dArgs& args, const Parallel& parallel);

}  // namespace lcs
