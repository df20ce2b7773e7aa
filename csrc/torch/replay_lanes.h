#pragma once
#include <optional>
#include <vector>

#include "lcs/sparse_conv2d_lanes.h"
#include "replay_code.h"
#include "replay_values.h"

namespace lcs::binding {

// The steps of `replay` that run in lanes: what sparse convolutions and norms of given statistics alone read stays so
// from one to the next.
class ReplayLanes {
 public:
  ReplayLanes(const Steps& steps, ReplayValues& values);

  // Whether a step has run so; else its result is yet to be computed.
  bool ran(size_t step);

 private:
  static constexpr int64_t kNoLanes = -1;

  // A norm's result, whose x becomes that of `line` where it is made.
  struct Norm {
    std::vector<float> vectors;
    LineNormLanesArgs line;
  };

  size_t value_of(size_t step) const { return inputs_ + step; }
  bool wants_lanes(size_t value) const { return border_[value] != kNoLanes; }
  int64_t border(size_t value) const { return std::max<int64_t>(border_[value], 0); }
  void needs(Place place, int64_t border);

  void plan(const SparseConv2dStep& conv, size_t step);
  void plan(const LineNormStep& norm, size_t step);
  bool ran(const SparseConv2dStep& step, size_t value, const std::vector<int64_t>& drops);
  bool ran(const LineNormStep& step, size_t value);

  bool adds_up(Place residual, const ImagesKind& y, const LaneGrid& grid);
  Norm norm_of(const LineNormStep& step, size_t value, const ImagesKind& kind, const LaneGrid& grid);
  std::optional<Norm> norm_behind(size_t value, const ImagesKind& kind, const LaneGrid& grid);

  const Steps& steps_;
  ReplayValues& values_;
  const size_t inputs_;
  std::vector<int64_t> border_;                // that every value needs in lanes; kNoLanes: no step would take it so
  std::vector<std::optional<size_t>> behind_;  // of each value the step of a norm that is made with it
};

}  // namespace lcs::binding
