#pragma once
#include "lcs/width_conv2d.h"

namespace lcs {

// The first `out` by `in` channels of a weight, as width_pack makes of a whole one.
void width_pack_part(const WidthWeight& weight, int64_t out, int64_t in, float* packed, const Parallel& parallel);

}  // namespace lcs
