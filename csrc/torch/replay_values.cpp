#include "replay_values.h"

#include <utility>

namespace lcs::binding {

ReplayValues::ReplayValues(std::vector<Tensor> inputs, const std::vector<Tensor>& constants, size_t steps)
    : constants_(constants), values_(inputs.size() + steps) {
  for (Tensor& input : inputs) add(std::move(input));
}

void ReplayValues::drop(int64_t value) {
  STD_TORCH_CHECK(value >= 0 && value < int64_t(next_), kReplay, ": there is no value ", value);
  values_[size_t(value)].reset();
}

const Tensor& ReplayValues::tensor(Place place) const {
  const bool constant = place.at >= 0 && place.is_constant();
  if (constant) {
    STD_TORCH_CHECK(place.index() < constants_.size(), kReplay, ": there is no constant ", place.index());
    return constants_[place.index()];
  }
  STD_TORCH_CHECK(place.at >= 0 && place.index() < next_, kReplay, ": there is no value ", place.at / 2);
  STD_TORCH_CHECK(values_[place.index()], kReplay, ": value ", place.index(), " was dropped");
  return *values_[place.index()];
}

}  // namespace lcs::binding
