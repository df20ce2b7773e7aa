#pragma once
#include <cstdint>

namespace lcs {

// Images in memory: `n` of `channels` x `height` x `width`, with the distances between elements. Of the distances
// between channels and between columns one is 1: NCHW or channels last.
struct Images {
  void* data;
  int64_t n, channels, height, width;
  int64_t image_stride, channel_stride, row_stride, column_stride;
};

// One of the two directions of a convolution.
struct Axis {
  int64_t stride, padding, dilation, kernel;
};

inline int64_t output_size(const Axis& a, int64_t size) {
  return (size + 2 * a.padding - a.dilation * (a.kernel - 1) - 1) / a.stride + 1;
}

}  // namespace lcs
