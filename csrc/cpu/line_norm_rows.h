#pragma once
#include <limits>

#include "lane_rows.h"
#include "lcs/lane_chain.h"
#include "sparse_conv2d_kernels.h"

namespace lcs {

// Norms of images in lanes, row by row.
class LineNormRows {
 public:
  LineNormRows(const LaneChainArgs::Norm& norm, const LaneImages& x, const LaneImages& y)
      : n_(norm), x_(x), y_(y), normalise_(sparse_conv2d_kernels(y.grid.lanes).normalise), borders_(y) {}

  // Channels [begin, end) of a row, with what repeats them.
  void operator()(int64_t group, int64_t row, int64_t begin, int64_t end) const {
    normalise_({x_.at(group, begin, row, 0), y_.at(group, begin, row, 0), y_.grid.width, end - begin, x_.channel_stride,
                y_.channel_stride, n_.mean + begin, n_.scale + begin, n_.shift + begin,
                n_.relu ? 0 : -std::numeric_limits<float>::infinity()});
    borders_.fill(group, row, begin, end);
  }

 private:
  const LaneChainArgs::Norm& n_;
  const LaneImages x_, y_;
  void (*const normalise_)(const LaneNorm&);
  const LaneBorders borders_;
};

}  // namespace lcs
