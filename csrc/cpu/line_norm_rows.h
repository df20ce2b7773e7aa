#pragma once
#include <limits>
#include <optional>
#include <vector>

#include "lane_rows.h"
#include "lcs/lane_chain.h"
#include "sparse_conv2d_kernels.h"

namespace lcs {

// Norms of images in lanes, row by row.
class LineNormRows {
 public:
  LineNormRows(const LaneChainArgs::Norm& norm, const std::vector<LaneImages>& images, const float* memory)
      : n_(norm),
        x_(images[norm.x]),
        y_(images[norm.y]),
        residual_(norm.residual ? std::optional(images[*norm.residual]) : std::nullopt),
        vectors_(norm.mean ? nullptr : memory + norm.vectors),
        normalise_(sparse_conv2d_kernels(y_.grid.lanes).normalise),
        borders_(y_) {}

  // Channels [begin, end) of a row, with what repeats them.
  void operator()(int64_t group, int64_t row, int64_t begin, int64_t end) const {
    const float* const own = vectors_ ? vectors_ + group * 3 * y_.channels : nullptr;
    const float *const mean = own ? own : n_.mean, *const scale = own ? own + y_.channels : n_.scale,
                       *const shift = own ? own + 2 * y_.channels : n_.shift;
    normalise_({x_.at(group, begin, row, 0), residual_ ? residual_->at(group, begin, row, 0) : nullptr,
                y_.at(group, begin, row, 0), y_.grid.width, end - begin, x_.channel_stride,
                residual_ ? residual_->channel_stride : 0, y_.channel_stride, mean + begin, scale + begin,
                shift + begin, n_.relu ? 0 : -std::numeric_limits<float>::infinity()});
    borders_.fill(group, row, begin, end);
  }

 private:
  const LaneChainArgs::Norm& n_;
  const LaneImages x_, y_;
  const std::optional<LaneImages> residual_;
  const float* const vectors_;  // of all groups
  void (*const normalise_)(const LaneNorm&);
  const LaneBorders borders_;
};

}  // namespace lcs
