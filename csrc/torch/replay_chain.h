#pragma once
#include "replay_code.h"
#include "replay_needs.h"
#include "replay_values.h"

namespace lcs::binding {

// How many steps from `first` on have run after each other on images in lanes, and made what others read; 0: they
// cannot run so, or are better run one by one.
size_t ran_in_chain(const Steps& steps, size_t first, ReplayValues& values, const ReplayNeeds& needs);

}  // namespace lcs::binding
