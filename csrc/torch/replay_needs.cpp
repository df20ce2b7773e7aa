#include "replay_needs.h"

#include "replay_places.h"

namespace lcs::binding {

ReplayNeeds::ReplayNeeds(const Steps& steps, size_t inputs)
    : inputs_(inputs), border_(inputs + steps.all.size(), kNoLanes), behind_(border_.size()) {
  for (size_t i = steps.all.size(); i-- > 0;) {  // what reads a value before what makes it
    if (const auto* conv = std::get_if<SparseConv2dStep>(&steps.all[i].call)) plan(*conv, value_of(i));
    if (const auto* norm = std::get_if<LineNormStep>(&steps.all[i].call)) plan(*norm, i);
  }
}

void ReplayNeeds::need(Place place, int64_t border) {
  if (!place.is_constant() && place.index() < border_.size())
    border_[place.index()] = std::max(border_[place.index()], border);
}

void ReplayNeeds::plan(const SparseConv2dStep& step, size_t value) {
  const ConvPlaces conv(step);
  if (!conv.could_take_lanes()) return;
  need(conv.x, conv.border());
  if (conv.residual) need(*conv.residual, border(value));  // y may take its place
}

void ReplayNeeds::plan(const LineNormStep& step, size_t i) {
  const NormPlaces norm(step);
  if (!norm.could_take_lanes() || !wants_lanes(value_of(i))) return;
  need(norm.x, 0);
  if (norm.x.index() < behind_.size()) behind_[norm.x.index()] = i;
}

}  // namespace lcs::binding
