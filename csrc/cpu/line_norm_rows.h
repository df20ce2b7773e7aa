#pragma once
#include <limits>

#include "lcs/line_norm_lanes.h"
#include "sparse_conv2d_kernels.h"

namespace lcs {

// Norms of images in lanes, row by row.
class LineNormRows {
 public:
  explicit LineNormRows(const LineNormLanesArgs& args)
      : a_(args), normalise_(sparse_conv2d_kernels(args.y.grid.lanes).normalise), borders_(args.y) {}

  // Channels [begin, end) of a row, with what repeats them.
  void operator()(int64_t group, int64_t row, int64_t begin, int64_t end) const {
    normalise_({a_.x.at(group, begin, row, 0), a_.y.at(group, begin, row, 0), a_.y.grid.width, end - begin,
                a_.x.channel_stride, a_.y.channel_stride, a_.mean + begin, a_.scale + begin, a_.shift + begin,
                a_.relu ? 0 : -std::numeric_limits<float>::infinity()});
    borders_.fill(group, row, begin, end);
  }

 private:
  const LineNormLanesArgs a_;
  void (*const normalise_)(const LaneNorm&);
  const LaneBorders borders_;
};

}  // namespace lcs
