#include "replay_needs.h"

namespace lcs::binding {

ReplayNeeds::ReplayNeeds(const Steps& steps, size_t inputs)
    : inputs_(inputs), border_(inputs + steps.all.size(), kNoLanes), behind_(border_.size()) {
  for (size_t i = steps.all.size(); i-- > 0;) {  // what reads a value before what makes it
    const AnyCall& call = steps.all[i].call;
    if (const auto* conv = std::get_if<SparseConv2dStep>(&call)) plan(ConvPlaces(*conv), value_of(i));
    if (const auto* conv = std::get_if<SparseConv2dNormStep>(&call)) plan(ConvPlaces(*conv), value_of(i));
    if (const auto* norm = std::get_if<LineNormStep>(&call)) plan(NormPlaces(*norm), i);
  }
}

void ReplayNeeds::need(Place place, int64_t border) {
  if (!place.is_constant() && place.index() < border_.size())
    border_[place.index()] = std::max(border_[place.index()], border);
}

void ReplayNeeds::plan(const ConvPlaces& conv, size_t value) {
  if (!conv.could_take_lanes) return;
  need(conv.x, conv.border);
  if (conv.residual) need(*conv.residual, border(value));  // y may take its place
  if (conv.norm && conv.norm->residual) need(*conv.norm->residual, 0);
}

void ReplayNeeds::plan(const NormPlaces& norm, size_t i) {
  if (!norm.could_take_lanes() || !wants_lanes(value_of(i))) return;
  need(norm.x, 0);
  if (norm.residual) need(*norm.residual, 0);
  const bool goes_with_x = norm.is_given() && !norm.residual && norm.x.index() < behind_.size();
  if (goes_with_x) behind_[norm.x.index()] = i;
}

}  // namespace lcs::binding
