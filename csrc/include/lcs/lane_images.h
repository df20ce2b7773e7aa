#pragma once
#include <cstdint>

#include "lcs/dtype.h"
#include "lcs/images.h"
#include "lcs/parallel.h"

namespace lcs {

// float32 images for kernels whose vectors go across them: groups of `lanes` images, and of a group row after row, in a
// row channel after channel, and at each position a float of every image, with `border` positions of zeros all around.
// Taps of all positions read whole vectors, so nothing is transposed between one convolution and the next.
struct LaneImages {
  float* data;
  int64_t lanes, groups, channels, height, width, border;
  int64_t channel_stride, row_stride, group_stride;  // in floats

  float* at(int64_t group, int64_t channel, int64_t row, int64_t column) const {
    return data + group * group_stride + (row + border) * row_stride + channel * channel_stride +
           (column + border) * lanes;
  }
  int64_t floats() const { return groups * group_stride; }
};

// Images that a group holds with the instruction set in use; 1: it has no vectors.
int64_t image_lanes();

// Of n images, a multiple of image_lanes(); without data.
LaneImages lane_images(int64_t n, int64_t channels, int64_t height, int64_t width, int64_t border);

// To lanes, with the border, and back, without.
void to_lanes(const Images& from, DType dtype, const LaneImages& to, const Parallel& parallel);
void from_lanes(const LaneImages& from, const Images& to, DType dtype, const Parallel& parallel);

// Fills what lies around channels [begin, end) of a row with zeros.
void clear_border(const LaneImages& images, int64_t group, int64_t row, int64_t begin, int64_t end);

}  // namespace lcs
