#pragma once
#include <cstdint>
#include <optional>

#include "lcs/lane_images.h"
#include "lcs/line_norm_lanes.h"
#include "lcs/sparse_conv2d.h"

namespace lcs {

// sparse_conv2d of images in lanes: the same results, bit by bit.
struct SparseConv2dLanesArgs {
  LaneImages x, y;  // x is only read; its border is at least the padding
  Axis vertical, horizontal;
  int64_t groups;
  SparsePrepack weight;
  const float *scale, *bias;
  bool relu;
  float cap;
  const LaneImages* residual;       // of y's grid; null: none
  const LineNormLanesArgs* behind;  // a norm of y whose result is made, too; null: none
};

// Whether there is a way for these arguments, whose data is not looked at, in some grid.
bool sparse_conv2d_takes_lanes(const SparseConv2dArgs& args);

// The grid of y that goes with x's, and of x that goes with y's: where blocks have neighbours, those of x are those of
// y times the stride; none: they do not.
std::optional<LaneGrid> lane_grid_of_y(const SparseConv2dArgs& args, const LaneGrid& x);
std::optional<LaneGrid> lane_grid_of_x(const SparseConv2dArgs& args, const LaneGrid& y);

// Writes y with its border, and what comes behind.
void sparse_conv2d_lanes(const SparseConv2dLanesArgs& args, const Parallel& parallel);

}  // namespace lcs
