#include "replay_lanes.h"

#include <algorithm>

#include "images_binding.h"
#include "line_norm_binding.h"

namespace lcs::binding {
namespace {

constexpr int64_t kMostBorder = 8;  // of images in lanes; a wider one would take more memory than most images

// The arguments that say whether a step can take lanes, by their places in the schema.
struct ConvPlaces {
  const Place& x;
  const std::vector<int64_t>& padding;
  const std::optional<Place>& residual;

  explicit ConvPlaces(const SparseConv2dStep& step)
      : x(std::get<0>(step.given)), padding(std::get<6>(step.given)), residual(std::get<14>(step.given)) {}

  int64_t border() const { return padding.empty() ? 0 : *std::max_element(padding.begin(), padding.end()); }
  bool could_take_lanes() const { return !x.is_constant() && border() <= kMostBorder; }
};

struct NormPlaces {
  const Place& x;
  const std::optional<Place>&mean, &var, &residual;

  explicit NormPlaces(const LineNormStep& step)
      : x(std::get<0>(step.given)),
        mean(std::get<6>(step.given)),
        var(std::get<7>(step.given)),
        residual(std::get<8>(step.given)) {}

  bool could_take_lanes() const { return !x.is_constant() && mean && var && !residual; }
};

bool has_constants_alone(const LineNormStep& step) {
  const auto constant = [](const std::optional<Place>& place) { return !place || place->is_constant(); };
  const auto& g = step.given;
  return constant(std::get<1>(g)) && constant(std::get<2>(g)) && constant(std::get<3>(g)) && constant(std::get<4>(g)) &&
         constant(std::get<5>(g)) && constant(std::get<6>(g)) && constant(std::get<7>(g));
}

// Whether neighbours' blocks have all that a border takes.
bool holds(const LaneGrid& grid, int64_t border) {
  return (grid.down == 1 || border <= grid.height) && (grid.across == 1 || border <= grid.width);
}

template <size_t... i>
SparseConv2dGiven given(const SparseConv2dStep& step, ReplayValues& values, std::index_sequence<i...>) {
  const auto tensor = [&](Place place) { return values.tensor(place); };
  return {step.argument<i + 1>(tensor)...};  // all but x, the first, and the residual, the last
}

}  // namespace

ReplayLanes::ReplayLanes(const Steps& steps, ReplayValues& values)
    : steps_(steps),
      values_(values),
      inputs_(values.size()),
      border_(inputs_ + steps.all.size(), kNoLanes),
      behind_(border_.size()) {
  for (size_t i = steps.all.size(); i-- > 0;) {  // what reads a value before what makes it
    if (const auto* conv = std::get_if<SparseConv2dStep>(&steps.all[i].call)) plan(*conv, i);
    if (const auto* norm = std::get_if<LineNormStep>(&steps.all[i].call)) plan(*norm, i);
  }
}

bool ReplayLanes::ran(size_t step) {
  const Step& s = steps_.all[step];
  if (const auto* conv = std::get_if<SparseConv2dStep>(&s.call)) return ran(*conv, value_of(step), s.drops);
  if (const auto* norm = std::get_if<LineNormStep>(&s.call)) return ran(*norm, value_of(step));
  return false;
}

void ReplayLanes::needs(Place place, int64_t border) {
  if (!place.is_constant() && place.index() < border_.size())
    border_[place.index()] = std::max(border_[place.index()], border);
}

void ReplayLanes::plan(const SparseConv2dStep& step, size_t i) {
  const ConvPlaces conv(step);
  if (!conv.could_take_lanes()) return;
  needs(conv.x, conv.border());
  if (conv.residual) needs(*conv.residual, border(value_of(i)));  // y may take its place
}

void ReplayLanes::plan(const LineNormStep& step, size_t i) {
  const NormPlaces norm(step);
  if (!norm.could_take_lanes() || !wants_lanes(value_of(i))) return;
  needs(norm.x, 0);
  if (norm.x.index() < behind_.size() && has_constants_alone(step)) behind_[norm.x.index()] = i;
}

bool ReplayLanes::ran(const SparseConv2dStep& step, size_t value, const std::vector<int64_t>& drops) {
  const ConvPlaces conv(step);
  if (!conv.could_take_lanes()) return false;
  const LaneGrid* const known = values_.grid(conv.x);
  if (!wants_lanes(value) && !known && !(conv.residual && values_.grid(*conv.residual))) return false;
  const ImagesKind kind = values_.kind(kSparseConv2d, conv.x);
  if (kind.type != ScalarType::Float) return false;
  SparseConv2dCall call(kSparseConv2d, kind, given(step, values_, std::make_index_sequence<13>()));
  const SparseConv2dArgs& a = call.args;
  if (!sparse_conv2d_takes_lanes(a)) return false;
  std::optional<LaneGrid> from, to;
  if (known) from = *known, to = lane_grid_of_y(a, *known);
  if (!to && wants_lanes(value)) {  // x in another grid, if it has one
    to = lane_grid(a.y.n, a.y.height, a.y.width);
    from = to ? lane_grid_of_x(a, *to) : std::nullopt;
  }
  if (!to || !from || !holds(*to, border(value)) || !holds(*from, border(conv.x.index()))) return false;
  if (conv.residual && !adds_up(*conv.residual, call.y, *to)) return false;
  std::optional<LaneImages> residual;
  if (conv.residual) residual = values_.lanes(*conv.residual, *to, border(conv.residual->index()));
  const LaneImages x = values_.lanes(conv.x, *from, border(conv.x.index()));
  const bool in_place = residual && residual->border >= border(value) && residual->data != x.data &&
                        std::find(drops.begin(), drops.end(), int64_t(conv.residual->index())) != drops.end();
  const LaneImages y = in_place ? values_.add_lanes_of(call.y, *conv.residual, value)
                                : values_.add_lanes(call.y, *to, border(value), value);
  std::optional<Norm> behind = norm_behind(value, call.y, *to);
  if (behind) behind->line.x = y;
  sparse_conv2d_lanes({x, y, a.vertical, a.horizontal, a.groups, a.weight, a.scale, a.bias, a.relu, a.cap,
                       residual ? &*residual : nullptr, behind ? &behind->line : nullptr},
                      parallel);
  return true;
}

bool ReplayLanes::ran(const LineNormStep& step, size_t value) {
  if (values_.has(value)) return true;  // with what it reads
  const NormPlaces norm(step);
  if (!norm.could_take_lanes()) return false;
  const LaneGrid* const grid = values_.grid(norm.x);
  if (!grid || !values_.lies_as_lanes(norm.x) || !holds(*grid, border(value))) return false;
  const LaneGrid same = *grid;
  Norm made = norm_of(step, value, values_.kind(kSparseConv2d, norm.x), same);
  made.line.x = values_.lanes(norm.x, same, border(norm.x.index()));
  line_norm_lanes(made.line, parallel);
  return true;
}

// Whether the residual can be had in y's lanes; what does not fit is left to the op to name.
bool ReplayLanes::adds_up(Place residual, const ImagesKind& y, const LaneGrid& grid) {
  if (residual.is_constant()) return false;
  if (const LaneGrid* const known = values_.grid(residual)) {
    const ImagesKind kind = values_.kind(kSparseConv2d, residual);
    return *known == grid && kind.size == y.size && kind.last == y.last;
  }
  const Tensor& t = values_.tensor(residual);
  return lies_as(t, y.size, y.type, y.last) && holds(grid, border(residual.index()));
}

// For x of such a kind and grid.
ReplayLanes::Norm ReplayLanes::norm_of(const LineNormStep& step, size_t value, const ImagesKind& kind,
                                       const LaneGrid& grid) {
  const auto vector = [&](const std::optional<Place>& place) {
    std::optional<Tensor> found = place ? std::optional(values_.tensor(*place)) : std::nullopt;
    make_contiguous(found);
    return found;
  };
  const auto& g = step.given;
  const std::optional<Tensor> weight0 = vector(std::get<1>(g)), weight1 = vector(std::get<2>(g)),
                              bias0 = vector(std::get<3>(g)), bias1 = vector(std::get<4>(g)),
                              alpha = vector(std::get<5>(g)), mean = vector(std::get<6>(g)),
                              var = vector(std::get<7>(g));
  const LineNormArgs args = binding::norm_behind("line_norm", kind.size, kind.type, kind.last,
                                                 {weight0, weight1, bias0, bias1, alpha, mean, var}, std::nullopt,
                                                 std::get<9>(g), std::get<10>(g), std::get<11>(g))
                                .args;
  const size_t channels = size_t(args.channels);
  Norm made{std::vector<float>(3 * channels), {}};
  float *const means = made.vectors.data(), *const scales = means + channels, *const shifts = scales + channels;
  std::copy_n(args.mean, channels, means);
  line_norm_lines(args, scales, shifts);
  made.line = {{}, values_.add_lanes(kind, grid, border(value), value), means, scales, shifts, args.relu};
  return made;
}

// The norm that is made with a value of such a kind and grid, which is yet to be computed.
std::optional<ReplayLanes::Norm> ReplayLanes::norm_behind(size_t value, const ImagesKind& kind, const LaneGrid& grid) {
  if (!behind_[value]) return std::nullopt;
  const size_t step = *behind_[value], to = value_of(step);
  if (!holds(grid, border(to))) return std::nullopt;
  ImagesKind same = kind;
  same.last = kind.last && kind.size[1] != 1;
  return norm_of(std::get<LineNormStep>(steps_.all[step].call), to, same, grid);
}

}  // namespace lcs::binding
