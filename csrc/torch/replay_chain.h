#pragma once
#include <functional>
#include <optional>

#include "replay_code.h"
#include "replay_needs.h"
#include "replay_values.h"

namespace lcs::binding {

// Steps that run after each other on images in lanes, and make what others read. They outlive it, and so do what they
// need and the memory of constants.
struct ReplayChain {
  size_t size;  // in steps
  std::function<void(ReplayValues&)> run;
};

// From step `first` on, for values like these; none: the steps cannot run so, or are better run one by one.
std::optional<ReplayChain> chain_from(size_t first, const Steps& steps, const ReplayValues& values,
                                      const ReplayNeeds& needs);

}  // namespace lcs::binding
