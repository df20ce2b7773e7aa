#include <algorithm>
#include <array>
#include <utility>

#include "images_binding.h"
#include "lcs/sparse_conv2d_lanes.h"
#include "replay_code.h"
#include "replay_values.h"

namespace lcs::binding {
namespace {

constexpr int64_t kMostBorder = 8;  // of images in lanes, which all of them have around them

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
    for (const Step& step : steps.all)
      if (const auto* conv = std::get_if<SparseConv2dStep>(&step.call)) plan(*conv);
  }

  void run(const Step& step) {
    std::visit([&](const auto& call) { run(call); }, step.call);
    for (const int64_t value : step.drops) values_.drop(value);
  }

  Tensor result(Place place) { return values_.tensor(place); }

 private:
  static constexpr int64_t kNoLanes = -1;

  // The arguments that say whether a step can take lanes.
  struct Conv {
    const Place& x;
    const std::vector<int64_t>&stride, &padding;
    const std::optional<Place>& residual;

    explicit Conv(const SparseConv2dStep& step)
        : x(std::get<0>(step.given)),
          stride(std::get<5>(step.given)),
          padding(std::get<6>(step.given)),
          residual(std::get<14>(step.given)) {}

    int64_t border() const { return padding.empty() ? 0 : *std::max_element(padding.begin(), padding.end()); }
    bool could_take_lanes() const { return !x.is_constant() && border() <= kMostBorder; }
  };

  void plan(const SparseConv2dStep& step) {
    const Conv conv(step);
    const auto needs = [&](Place place, int64_t border) {
      if (!place.is_constant() && place.index() < border_.size())
        border_[place.index()] = std::max(border_[place.index()], border);
    };
    if (!conv.could_take_lanes()) return;
    needs(conv.x, conv.border());
    if (conv.residual) needs(*conv.residual, 0);
  }

  template <class Call>
  void run_alone(const Call& call) {
    values_.add(first(call.run([&](Place place) { return values_.tensor(place); })));
  }
  template <class Call>
  void run(const Call& call) {
    run_alone(call);
  }

  void run(const SparseConv2dStep& step) {
    const Conv conv(step);
    const bool goes_on = border_[values_.size()] != kNoLanes,
               comes = values_.has_lanes(conv.x) || (conv.residual && values_.has_lanes(*conv.residual));
    if (!(conv.could_take_lanes() && (goes_on || comes) && ran_in_lanes(step, conv))) run_alone(step);
  }

  bool ran_in_lanes(const SparseConv2dStep& step, const Conv& conv) {
    SparseConv2dCall call(kSparseConv2d, values_.kind(kSparseConv2d, conv.x),
                          given(step, std::make_index_sequence<13>()));
    if (!sparse_conv2d_takes_lanes(call.args)) return false;
    std::optional<LaneImages> residual;
    if (conv.residual) {
      if (conv.residual->is_constant()) return false;
      const ImagesKind kind = values_.kind(kSparseConv2d, *conv.residual);
      if (kind.size != call.y.size || kind.type != call.y.type || kind.last != call.y.last) return false;
      residual = values_.lanes(*conv.residual, border_[conv.residual->index()]);
    }
    const LaneImages x = values_.lanes(conv.x, border_[conv.x.index()]),
                     y = values_.add_lanes(call.y, std::max<int64_t>(border_[values_.size()], 0));
    const SparseConv2dArgs& a = call.args;
    sparse_conv2d_lanes({x, y, a.vertical, a.horizontal, a.groups, a.weight, a.scale, a.bias, a.relu, a.cap,
                         residual ? &*residual : nullptr},
                        parallel);
    return true;
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
