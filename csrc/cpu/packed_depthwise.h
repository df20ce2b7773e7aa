#pragma once
#include "lcs/packed_conv2d.h"

namespace lcs {

// packed_conv2d of a depthwise weight, of at least one output.
void packed_depthwise(const PackedConv2dArgs& args, const Parallel& parallel);

// Likewise, by spans, where `packed_depthwise_fits` says that it can.
void packed_depthwise_by_spans(const PackedConv2dArgs& args, const Parallel& parallel);
bool packed_depthwise_fits(const PackedConv2dArgs& args);

}  // namespace lcs
