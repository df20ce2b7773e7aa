#pragma once
#include "lcs/width_conv2d.h"

namespace lcs {

// The first `out` by `in` channels of a weight, as width_pack makes of a whole one.
void width_pack_part(const WidthWeight& weight, int64_t out, int64_t in, float* packed, const Parallel& parallel);

// The same form of the weight that gives the gradient to x: of its output channels the input ones, and the taps in
// reverse.
void width_pack_turned(const WidthWeight& weight, float* packed, const Parallel& parallel);

}  // namespace lcs
