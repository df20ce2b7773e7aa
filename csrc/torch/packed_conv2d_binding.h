#pragma once
#include <algorithm>

#include "images_binding.h"
#include "lcs/packed_conv2d.h"

// What the bindings of packed convolutions share.
namespace lcs::binding {

// Of packed_conv2d, which copies whole images: of joined taps each row once more, before they are put together.
inline void check_packed_images(const char* op, const PackedConv2dArgs& a) {
  constexpr int kBits = 40;  // a terabyte of codes
  if (a.x.n * a.y.channels == 0) return;
  const NestedLayout& layout = a.weight.layout;
  const bool joined = layout.joined > 1;
  const int64_t rows = padded_size(a.vertical, a.y.height), columns = padded_size(a.horizontal, a.y.width);
  const int64_t values = std::max(a.x.channels, layout.parts * layout.segment_steps() * NestedLayout::kStep);
  check_padded(op, rows, joined ? a.y.width : columns, a.depthwise ? a.x.channels : values, kBits);
  if (joined) check_padded(op, 1, columns, a.x.channels, kBits);
}

}  // namespace lcs::binding
