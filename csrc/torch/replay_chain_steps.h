#pragma once
#include <deque>
#include <optional>
#include <variant>

#include "replay_code.h"
#include "replay_needs.h"
#include "replay_norm.h"
#include "replay_places.h"
#include "replay_values.h"
#include "sparse_conv2d_binding.h"

namespace lcs::binding {

// Convolutions and norms after each other, which read what one value and they themselves make, with their arguments.
struct ChainSteps {
  struct Conv {
    ConvPlaces places;
    SparseConv2dCall call;
    std::optional<ReplayNorm> norm;  // a part of it
  };
  using Step = std::variant<Conv, ReplayNorm>;

  std::deque<Step> all;
  bool measure = false;  // whether norms have statistics of their own

  int64_t images() const { return all.empty() ? 0 : std::get<Conv>(all.front()).call.x.size[0]; }
};

// From a step on, for values like these; with norms of statistics of their own, or without.
ChainSteps chain_steps(size_t first, const Steps& steps, const ReplayValues& values, const ReplayNeeds& needs,
                       bool may_measure);

}  // namespace lcs::binding
