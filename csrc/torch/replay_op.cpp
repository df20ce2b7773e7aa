#include <algorithm>
#include <utility>

#include "images_binding.h"
#include "lcs/sparse_conv2d_lanes.h"
#include "replay_code.h"
#include "replay_values.h"

namespace lcs::binding {
namespace {

constexpr int64_t kMostBorder = 8;  // of images in lanes; a wider one would take more memory than most images

template <size_t... i>
AnyCall read_call(Code& code, int64_t op, std::index_sequence<i...>) {
  using Read = AnyCall (*)(Code&);
  constexpr Read kReads[] = {[](Code& c) { return AnyCall(std::in_place_index<i>, c); }...};
  STD_TORCH_CHECK(op >= 0 && op < int64_t(sizeof...(i)), kReplay, ": there is no op ", op);
  return kReads[op](code);
}

// Runs the steps. What sparse convolutions alone read stays in lanes from one to the next.
class Replay {
 public:
  Replay(std::vector<Tensor> inputs, const std::vector<Tensor>& constants, const Steps& steps)
      : values_(std::move(inputs), constants), border_(values_.size() + steps.all.size(), kNoLanes) {
    for (size_t left = steps.all.size(); left > 0; --left)  // what reads a value before what makes it
      if (const auto* conv = std::get_if<SparseConv2dStep>(&steps.all[left - 1].call))
        plan(*conv, border_[values_.size() + left - 1]);
  }

  void run(const Step& step) {
    const auto* const conv = std::get_if<SparseConv2dStep>(&step.call);
    const auto tensor = [&](Place place) { return values_.tensor(place); };
    if (!conv || !ran_in_lanes(*conv, step.drops))
      std::visit([&](const auto& call) { values_.add(first(call.run(tensor))); }, step.call);
    for (const int64_t value : step.drops) values_.drop(value);
  }

  Tensor result(Place place) { return values_.tensor(place); }

 private:
  static constexpr int64_t kNoLanes = -1;

  // The arguments that say whether a step can take lanes, by their places in the schema.
  struct Conv {
    const Place& x;
    const std::vector<int64_t>& padding;
    const std::optional<Place>& residual;

    explicit Conv(const SparseConv2dStep& step)
        : x(std::get<0>(step.given)), padding(std::get<6>(step.given)), residual(std::get<14>(step.given)) {}

    int64_t border() const { return padding.empty() ? 0 : *std::max_element(padding.begin(), padding.end()); }
    bool could_take_lanes() const { return !x.is_constant() && border() <= kMostBorder; }
  };

  void plan(const SparseConv2dStep& step, int64_t border_of_y) {
    const Conv conv(step);
    const auto needs = [&](Place place, int64_t border) {
      if (!place.is_constant() && place.index() < border_.size())
        border_[place.index()] = std::max(border_[place.index()], border);
    };
    if (!conv.could_take_lanes()) return;
    needs(conv.x, conv.border());
    if (conv.residual) needs(*conv.residual, std::max<int64_t>(border_of_y, 0));  // y may take its place
  }

  // Whether it has; else its result is yet to be computed.
  bool ran_in_lanes(const SparseConv2dStep& step, const std::vector<int64_t>& drops) {
    const Conv conv(step);
    const int64_t planned = border_[values_.size()], border = std::max<int64_t>(planned, 0);
    if (!conv.could_take_lanes()) return false;
    const LaneGrid* const known = values_.grid(conv.x);
    if (planned == kNoLanes && !known && !(conv.residual && values_.grid(*conv.residual))) return false;
    const ImagesKind kind = values_.kind(kSparseConv2d, conv.x);
    if (kind.type != ScalarType::Float) return false;
    SparseConv2dCall call(kSparseConv2d, kind, given(step, std::make_index_sequence<13>()));
    const SparseConv2dArgs& a = call.args;
    if (!sparse_conv2d_takes_lanes(a)) return false;
    const std::optional<LaneGrid> to = known ? lane_grid_of_y(a, *known) : lane_grid(a.y.n, a.y.height, a.y.width);
    const std::optional<LaneGrid> from = known ? *known : to ? lane_grid_of_x(a, *to) : std::nullopt;
    if (!to || !from || !holds(*to, border) || !holds(*from, border_[conv.x.index()])) return false;
    if (conv.residual && !adds_up(*conv.residual, call.y, *to)) return false;
    std::optional<LaneImages> residual;
    if (conv.residual) residual = values_.lanes(*conv.residual, *to, border_[conv.residual->index()]);
    const LaneImages x = values_.lanes(conv.x, *from, border_[conv.x.index()]);
    const bool in_place = residual && residual->border >= border && residual->data != x.data &&
                          std::find(drops.begin(), drops.end(), int64_t(conv.residual->index())) != drops.end();
    const LaneImages y =
        in_place ? values_.add_lanes_of(call.y, *conv.residual) : values_.add_lanes(call.y, *to, border);
    sparse_conv2d_lanes({x, y, a.vertical, a.horizontal, a.groups, a.weight, a.scale, a.bias, a.relu, a.cap,
                         residual ? &*residual : nullptr},
                        parallel);
    return true;
  }

  // Whether neighbours' blocks have all that a border takes.
  static bool holds(const LaneGrid& grid, int64_t border) {
    return (grid.down == 1 || border <= grid.height) && (grid.across == 1 || border <= grid.width);
  }

  // Whether the residual can be had in y's lanes; what does not fit is left to the op to name.
  bool adds_up(Place residual, const ImagesKind& y, const LaneGrid& grid) {
    if (residual.is_constant()) return false;
    if (const LaneGrid* const known = values_.grid(residual)) {
      const ImagesKind kind = values_.kind(kSparseConv2d, residual);
      return *known == grid && kind.size == y.size && kind.last == y.last;
    }
    const Tensor& t = values_.tensor(residual);
    return lies_as(t, y.size, y.type, y.last) && holds(grid, border_[residual.index()]);
  }

  template <size_t... i>
  SparseConv2dGiven given(const SparseConv2dStep& step, std::index_sequence<i...>) {
    const auto tensor = [&](Place place) { return values_.tensor(place); };
    return {step.argument<i + 1>(tensor)...};  // all but x, the first, and the residual, the last
  }

  static Tensor first(Tensor made) { return made; }
  static Tensor first(std::tuple<Tensor, Tensor> made) { return std::get<0>(std::move(made)); }

  ReplayValues values_;
  std::vector<int64_t> border_;  // that every value needs in lanes; kNoLanes: no step would take it so
};

std::vector<Tensor> replay_cpu(std::vector<Tensor> inputs, std::vector<Tensor> constants, Tensor code,
                               std::vector<int64_t>) {
  const Steps steps(code);
  Replay replay(std::move(inputs), constants, steps);
  for (const Step& step : steps.all) replay.run(step);
  std::vector<Tensor> made;
  for (const Place place : steps.results) made.push_back(replay.result(place));
  return made;
}

}  // namespace

Steps::Steps(const Tensor& given) {
  Code code(given);
  for (auto left = code.read<int64_t>(); left > 0; --left) {
    const auto op = code.read<int64_t>();
    AnyCall call = read_call(code, op, std::make_index_sequence<std::variant_size_v<AnyCall>>());
    all.push_back({std::move(call), code.read<std::vector<int64_t>>()});
  }
  results = code.read<std::vector<Place>>();
  STD_TORCH_CHECK(code.at_end(), kReplay, ": the code goes on behind its last step");
}

}  // namespace lcs::binding

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) { m.impl("replay", TORCH_BOX(&lcs::binding::replay_cpu)); }
