#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "lane_rows.h"
#include "lcs/ceil_div.h"
#include "lcs/lane_chain.h"
#include "line_norm_rows.h"
#include "sparse_conv2d_kernels.h"
#include "sparse_conv2d_sums.h"

namespace lcs {

// Sparse convolutions of images in lanes, band by band of one row or two, with the norm behind each.
class SparseConv2dRows {
 public:
  // x is only read; its border is at least the padding. The residual is of y's grid, and may be y.
  SparseConv2dRows(const LaneChainArgs::Conv& conv, const std::vector<LaneImages>& images, const float* memory);
  SparseConv2dRows(const SparseConv2dRows&) = delete;

  const SparsePrepack& weight() const { return c_.weight; }
  const SparseSums& sums() const { return sums_; }

  // That read each value.
  int64_t tiles() const { return y_.groups * bands() * tiles_of_band(lines_); }
  int64_t bands() const { return ceil_div(y_.grid.height, lines_); }
  // Output channels [begin, end) of a band, with what repeats them and what comes behind; `distance` of all values.
  void operator()(int64_t group, int64_t band, int64_t begin, int64_t end, const int32_t* distance) const;

 private:
  int64_t tiles_of_band(int64_t lines) const;  // of so many rows

  const LaneChainArgs::Conv& c_;
  const LaneImages x_, y_;
  const std::optional<LaneImages> residual_;
  const SparseConv2dKernels run_;
  const int64_t lines_;  // of a band
  const SparseSums sums_;
  const LaneBorders borders_;
  std::optional<LineNormRows> behind_;
};

}  // namespace lcs
