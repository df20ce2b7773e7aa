#pragma once
#include "lcs/lane_images.h"

namespace lcs {

// A norm of given statistics of images in lanes: the results of line_norm, bit by bit.
struct LineNormLanesArgs {
  LaneImages x, y;                    // of one grid; of x nothing is read but the images
  const float *mean, *scale, *shift;  // of each channel, as line_norm_lines has them: (x - mean) * scale + shift
  bool relu;
};

// Writes y with its border.
void line_norm_lanes(const LineNormLanesArgs& args, const Parallel& parallel);

}  // namespace lcs
