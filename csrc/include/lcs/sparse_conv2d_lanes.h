#pragma once
#include <optional>

#include "lcs/lane_images.h"
#include "lcs/sparse_conv2d.h"

namespace lcs {

// Whether a step of `lane_chain` gives the same bits as sparse_conv2d of these arguments, whose data is not looked at.
bool sparse_conv2d_takes_lanes(const SparseConv2dArgs& args);

// The grid of y that goes with x's, and of x that goes with y's: where blocks have neighbours, those of x are those of
// y times the stride; none: they do not.
std::optional<LaneGrid> lane_grid_of_y(const SparseConv2dArgs& args, const LaneGrid& x);
std::optional<LaneGrid> lane_grid_of_x(const SparseConv2dArgs& args, const LaneGrid& y);

}  // namespace lcs
