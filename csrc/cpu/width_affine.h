#pragma once
#include <algorithm>
#include <cstdint>

#include "lcs/width_conv2d.h"

namespace lcs {

// The scale and bias of each output channel, from `to` and `to + whole` on, up to `whole` channels; 1 and 0 where there
// is none.
inline void fill_affine(const WidthConv2dArgs& a, int64_t whole, float* to) {
  std::fill(to, to + whole, 1.0f);
  std::fill(to + whole, to + 2 * whole, 0.0f);
  if (a.scale) std::copy(a.scale, a.scale + a.y.channels, to);
  if (a.bias) std::copy(a.bias, a.bias + a.y.channels, to + whole);
}

}  // namespace lcs
