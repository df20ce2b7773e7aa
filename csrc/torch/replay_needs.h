#pragma once
#include <algorithm>
#include <optional>
#include <vector>

#include "replay_code.h"
#include "replay_places.h"

namespace lcs::binding {

// What steps that run in lanes need of the values of `replay`.
class ReplayNeeds {
 public:
  ReplayNeeds(const Steps& steps, size_t inputs);

  size_t value_of(size_t step) const { return inputs_ + step; }
  bool wants_lanes(size_t value) const { return border_[value] != kNoLanes; }
  int64_t border(size_t value) const { return std::max<int64_t>(border_[value], 0); }
  std::optional<size_t> behind(size_t value) const { return behind_[value]; }  // a norm, by its step, to go with it

 private:
  static constexpr int64_t kNoLanes = -1;

  void need(Place place, int64_t border);
  void plan(const ConvPlaces& conv, size_t value);
  void plan(const NormPlaces& norm, size_t step);

  const size_t inputs_;
  std::vector<int64_t> border_;  // that every value needs in lanes; kNoLanes: no step would take it so
  std::vector<std::optional<size_t>> behind_;
};

}  // namespace lcs::binding
