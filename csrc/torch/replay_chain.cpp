#include "replay_chain.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <utility>
#include <variant>

#include "images_binding.h"
#include "lcs/lane_chain.h"
#include "lcs/sparse_conv2d_lanes.h"
#include "replay_chain_steps.h"

namespace lcs::binding {
namespace {

constexpr int64_t kLeastPasses = 8;  // enough to keep the threads even
constexpr int64_t kMeasured = 4;     // times as much as a core keeps, of shared steps that measure what they have made
constexpr size_t kLeastSteps = 2;    // that share what is in lanes
constexpr double kOwnMemory = 1.2;   // times what the cheapest grid costs, of passes in threads' own caches

// What it takes to begin another chain, and to hand it a float, in multiplications of vectors of 16 lanes.
constexpr double kNextChain = 40'000, kHandedFloat = 0.7;

// Memory that values have one after the other, on cache lines' borders.
class Arena {
 public:
  int64_t take(int64_t floats) {
    floats = (floats + kLine - 1) / kLine * kLine;
    auto best = free_.end();
    for (auto at = free_.begin(); at != free_.end(); ++at)
      if (at->floats >= floats && (best == free_.end() || at->floats < best->floats)) best = at;
    if (best == free_.end()) {
      taken_.push_back({std::exchange(floats_, floats_ + floats), floats});
    } else {
      taken_.push_back(*best);
      free_.erase(best);
    }
    return taken_.back().begin;
  }

  void give_back(int64_t begin) {
    const auto part = std::find_if(taken_.begin(), taken_.end(), [&](const Part& p) { return p.begin == begin; });
    free_.push_back(*part);
    taken_.erase(part);
  }

  int64_t floats() const { return floats_; }

 private:
  static constexpr int64_t kLine = 16;
  struct Part {
    int64_t begin, floats;
  };
  std::vector<Part> taken_, free_;
  int64_t floats_ = 0;
};

// How those steps run on groups of images in lanes, whose first result lies in such a grid: as far as they go.
class Plan {
 public:
  Plan(const ChainSteps& chain, const Steps& steps, size_t first, const ReplayNeeds& needs, const LaneGrid& grid,
       int64_t passes, bool shared)
      : chain_(chain), steps_(steps), first_(first), needs_(needs), grid_(grid), shared_(shared) {
    args_.passes = passes;
    while (size_ < chain.all.size() && std::visit([this](const auto& step) { return takes(step); }, chain.all[size_])) {
      for (const int64_t value : steps.all[first + size_].drops) drop(size_t(value));
      ++size_;
    }
    args_.floats = arena_.floats();
    for (const auto& [value, known] : known_)
      if (known.is_made && !known.is_dropped) {
        made_.push_back({value, args_.steps.size(), known.kind});
        args_.steps.push_back(LaneChainArgs::Store{known.at, of_a_pass(*known.kind)});
      }
  }

  size_t size() const { return size_; }  // in steps
  int64_t floats() const { return args_.floats; }
  int64_t images_at_once() const { return grid_.images; }
  int64_t groups() const { return chain_.images() / grid_.images; }
  // Whether its further steps are worth what its grid costs more in those that the other takes, too.
  bool pays_beyond(const Plan& other) const {
    const double more = (lane_grid_cost(grid_) - lane_grid_cost(other.grid_)) * other.multiplications_;
    return size_ > other.size_ && more <= kNextChain + kHandedFloat * double(other.floats_made());
  }
  Plan of_passes(int64_t passes) const { return {chain_, steps_, first_, needs_, grid_, passes, shared_}; }

  // On values like those that the steps were found with; of norms, what they hold now.
  void run(ReplayValues& values) const {
    LaneChainArgs args = args_;
    std::vector<Tensor> kept;
    for (const Moved& read : read_) {
      const Tensor& tensor = values.tensor(Place::of_value(read.value));
      kept.push_back(read.kind->last ? tensor : torch::stable::contiguous(tensor));
      std::get<LaneChainArgs::Load>(args.steps[read.step]).from.data = const_cast<void*>(kept.back().const_data_ptr());
    }
    std::vector<Tensor> made;
    for (const Moved& each : made_) {
      made.push_back(empty_images(each.kind->size, each.kind->type, each.kind->last));
      std::get<LaneChainArgs::Store>(args.steps[each.step]).to.data = made.back().mutable_data_ptr();
    }
    std::deque<ReplayNorm> norms;
    for (const NormAt& at : norms_) at.fill(args, norms.emplace_back(*at.norm, values));
    Tensor memory;
    if (shared_) {
      const int64_t step = 1;
      memory = empty_strided({&args.floats, 1}, {&step, 1}, int32_t(ScalarType::Float));
      args.memory = static_cast<float*>(memory.mutable_data_ptr());
    }
    lane_chain(args, parallel);
    for (size_t i = 0; i < made.size(); ++i) values.set(made_[i].value, std::move(made[i]));
  }

 private:
  struct Known {
    size_t at;  // among the chain's values
    const ImagesKind* kind;
    bool is_made, is_dropped = false;
  };

  // A value that a step reads from outside, or leaves for others.
  struct Moved {
    size_t value, step;  // of the chain
    const ImagesKind* kind;
  };

  // Where in the chain a norm's vectors are given: to a norm, to the one behind a convolution, or to what measures.
  struct NormAt {
    size_t step;
    const ReplayNorm* norm;

    void fill(LaneChainArgs& args, const ReplayNorm& now) const {
      LaneChainArgs::Step& of = args.steps[step];
      if (auto* const conv = std::get_if<LaneChainArgs::Conv>(&of)) return fill(*conv->behind, now);
      if (auto* const normed = std::get_if<LaneChainArgs::Norm>(&of)) return fill(*normed, now);
      auto& measured = std::get<LaneChainArgs::Statistics>(of);
      measured.weight = now.scale, measured.bias = now.shift;
    }
    static void fill(LaneChainArgs::Norm& to, const ReplayNorm& now) {
      to.mean = now.mean, to.scale = now.scale, to.shift = now.shift;
    }
  };

  // Of values that are left for others.
  int64_t floats_made() const {
    int64_t floats = 0;
    for (const Moved& each : made_) {
      const std::vector<int64_t>& size = each.kind->size;
      floats += size[0] * size[1] * size[2] * size[3];
    }
    return floats;
  }

  Known* known(size_t value) {
    const auto found = known_.find(value);
    return found == known_.end() ? nullptr : &found->second;
  }
  bool was_dropped(Place place) {
    const Known* const found = known(place.index());
    return found && found->is_dropped;
  }
  const LaneGrid& grid_of(const Known& known) const { return args_.values[known.at].images.grid; }
  bool holds(const LaneGrid& grid, size_t value) const { return binding::holds(grid, needs_.border(value)); }

  bool takes(const ChainSteps::Conv& step) {
    const ConvPlaces& conv = step.places;
    const SparseConv2dArgs& a = step.call.args;
    const size_t value = needs_.value_of(first_ + size_);
    const Known* const x = known(conv.x.index());
    if (was_dropped(conv.x)) return false;  // the op says it
    const std::optional<LaneGrid> to = x ? lane_grid_of_y(a, grid_of(*x)) : grid_,
                                  from = x ? grid_of(*x) : lane_grid_of_x(a, grid_);
    if (!to || !from || !holds(*to, value) || !holds(*from, conv.x.index()) || !adds(conv.residual, *to)) return false;
    if (step.norm && !measures(*step.norm, *to)) return false;
    LaneChainArgs::Conv made{};
    made.vertical = a.vertical, made.horizontal = a.horizontal, made.groups = a.groups, made.weight = a.weight;
    made.scale = a.scale, made.bias = a.bias, made.relu = a.relu, made.cap = a.cap;
    made.x = x ? x->at : load(conv.x, step.call.x, *from);
    if (conv.residual) made.residual = load(*conv.residual, step.call.y, *to);
    made.y = takes_place_of_residual(conv) ? take_place(value, step.call.y, conv.residual->index())
                                           : add(value, step.call.y, *to);
    if (const std::optional<size_t> behind = step.norm ? std::nullopt : needs_.behind(value))
      if (*behind - first_ < chain_.all.size() && holds(*to, needs_.value_of(*behind)))
        made.behind = norm_of(norm_at(*behind), made.y, add(needs_.value_of(*behind), norm_at(*behind).y, *to), *to);
    if (made.behind) norms_.push_back({args_.steps.size(), &norm_at(*needs_.behind(value))});
    args_.steps.push_back(made);
    multiplications_ += double(a.weight.stored()) * double(a.y.n * a.y.height * a.y.width);
    if (step.norm) normalise(*step.norm, made.y, made.y, *to);
    return true;
  }

  bool takes(const ReplayNorm& norm) {
    const size_t value = needs_.value_of(first_ + size_);
    if (known(value)) return true;  // with what it reads
    if (was_dropped(norm.places.x)) return false;
    const Known x = *known(norm.places.x.index());
    const LaneGrid grid = grid_of(x);
    if (!holds(grid, value) || !adds(norm.places.residual, grid) || !measures(norm, grid)) return false;
    normalise(norm, x.at, add(value, norm.y, grid), grid);
    return true;
  }

  const ReplayNorm& norm_at(size_t step) const { return std::get<ReplayNorm>(chain_.all[step - first_]); }

  // Whether a residual can be had in y's grid.
  bool adds(const std::optional<Place>& residual, const LaneGrid& grid) {
    if (!residual) return true;
    const Known* const found = known(residual->index());
    return found ? !found->is_dropped && grid_of(*found) == grid : holds(grid, residual->index());
  }

  static bool measures(const ReplayNorm& norm, const LaneGrid& grid) { return norm.mean || grid.images == 1; }

  void normalise(const ReplayNorm& norm, size_t x, size_t y, const LaneGrid& grid) {
    LaneChainArgs::Norm made = norm_of(norm, x, y, grid);
    norms_.push_back({args_.steps.size(), &norm});
    if (!norm.mean) {
      made.vectors = arena_.take(3 * norm.y.size[1] * args_.values[x].images.groups);
      args_.steps.push_back(
          LaneChainArgs::Statistics{x, made.vectors, norm.places.groups, norm.places.eps, nullptr, nullptr});
      arena_.give_back(made.vectors);
    }
    args_.steps.push_back(made);
  }

  LaneChainArgs::Norm norm_of(const ReplayNorm& norm, size_t x, size_t y, const LaneGrid& grid) {
    std::optional<size_t> residual;
    if (norm.places.residual) residual = load(*norm.places.residual, norm.y, grid);
    return {x, y, residual, nullptr, nullptr, nullptr, 0, norm.places.relu};
  }

  // Whether nobody reads the residual later.
  bool takes_place_of_residual(const ConvPlaces& conv) {
    if (!conv.residual || conv.residual->index() == conv.x.index()) return false;
    const std::vector<int64_t>& drops = steps_.all[first_ + size_].drops;
    const LaneImages& images = args_.values[known(conv.residual->index())->at].images;
    return images.border >= needs_.border(needs_.value_of(first_ + size_)) &&
           std::find(drops.begin(), drops.end(), int64_t(conv.residual->index())) != drops.end();
  }

  // Where among the chain's values a value is, which the chain loads if it is not there yet.
  size_t load(Place place, const ImagesKind& kind, const LaneGrid& grid) {
    if (const Known* const found = known(place.index())) return found->at;
    const size_t at = add(place.index(), kind, grid);
    known(place.index())->is_made = false;
    read_.push_back({place.index(), args_.steps.size(), &kind});
    args_.steps.push_back(LaneChainArgs::Load{of_a_pass(kind), at});
    return at;
  }

  size_t add(size_t value, const ImagesKind& kind, const LaneGrid& grid) {
    const LaneImages images = lane_images(grid, chain_.images() / args_.passes, kind.size[1], needs_.border(value));
    args_.values.push_back({images, arena_.take(images.floats())});
    known_.insert_or_assign(value, Known{args_.values.size() - 1, &kind, true});
    return args_.values.size() - 1;
  }

  size_t take_place(size_t value, const ImagesKind& kind, size_t of) {
    Known& residual = *known(of);
    residual.is_dropped = true;
    const size_t at = residual.at;
    known_.insert_or_assign(value, Known{at, &kind, true});
    return at;
  }

  void drop(size_t value) {
    Known* const dropped = known(value);
    if (!dropped || dropped->is_dropped) return;
    dropped->is_dropped = true;
    arena_.give_back(args_.values[dropped->at].at);
  }

  // Without data.
  Images of_a_pass(const ImagesKind& kind) const {
    Images all = images(kind.size, nullptr, kind.last);
    all.n /= args_.passes;
    return all;
  }

  const ChainSteps& chain_;
  const Steps& steps_;
  const size_t first_;
  const ReplayNeeds& needs_;
  const LaneGrid grid_;
  const bool shared_;
  size_t size_ = 0;
  double multiplications_ = 0;  // by stored values, of all positions
  LaneChainArgs args_{};
  Arena arena_;
  std::map<size_t, Known> known_;  // by value
  std::vector<Moved> read_, made_;
  std::vector<NormAt> norms_;
};

// The one that should take least time; none where it would take too much memory.
std::optional<Plan> plan_of(const ChainSteps& chain, const Steps& steps, size_t first, const ReplayNeeds& needs,
                            bool in_passes) {
  const Images& y = std::get<ChainSteps::Conv>(chain.all.front()).call.args.y;
  const int64_t kept = lane_chain_floats(), fits = kept / 2, no_limit = std::numeric_limits<int64_t>::max(),
                most = in_passes       ? kept
                       : chain.measure ? kMeasured * kept
                                       : no_limit;
  std::optional<Plan> best;
  double least = 0;
  for (const LaneGrid& grid : lane_grids(y.n, y.height, y.width)) {
    const bool may_finish = grid.images == 1 || !chain.measure;
    if (may_finish && least == 0) least = lane_grid_cost(grid);
    const bool is_cheap = may_finish && lane_grid_cost(grid) <= kOwnMemory * least;
    if (in_passes && (y.n / grid.images < kLeastPasses || !is_cheap)) continue;
    if ((in_passes ? grid.images : y.n) * y.channels * y.height * y.width > most) continue;
    const bool may_fit =
        in_passes && best && best->floats() > fits && best->floats() / best->images_at_once() * grid.images <= fits;
    if (best && best->size() == chain.all.size() && !may_fit) continue;
    Plan plan(chain, steps, first, needs, grid, in_passes ? y.n / grid.images : 1, !in_passes);
    if (plan.size() < kLeastSteps || plan.floats() > most) continue;
    const auto better = [&] {
      if (!in_passes) return plan.pays_beyond(*best);
      return plan.size() > best->size() ||
             (plan.size() == best->size() && plan.floats() <= fits && fits < best->floats());
    };
    if (!best || better()) best.emplace(std::move(plan));
  }
  if (in_passes || !best) return best;
  const int64_t groups = best->groups();
  int64_t passes = 1;
  while (passes < groups && (groups % passes != 0 || best->floats() > passes * lane_chain_shared_floats())) ++passes;
  if (passes > 1) best.emplace(best->of_passes(passes));
  return best;
}

}  // namespace

std::optional<ReplayChain> chain_from(size_t first, const Steps& steps, const ReplayValues& values,
                                      const ReplayNeeds& needs) {
  if (!needs.wants_lanes(needs.value_of(first))) return std::nullopt;
  for (const bool may_measure : {true, false}) {
    const auto chain = std::make_shared<const ChainSteps>(chain_steps(first, steps, values, needs, may_measure));
    if (chain->all.size() < kLeastSteps) return std::nullopt;
    for (const bool in_passes : {true, false}) {
      std::optional<Plan> found = plan_of(*chain, steps, first, needs, in_passes);
      if (!found || (in_passes && found->size() < chain->all.size())) continue;
      const auto plan = std::make_shared<const Plan>(std::move(*found));
      return ReplayChain{plan->size(), [chain, plan](ReplayValues& values) { plan->run(values); }};
    }
    if (!chain->measure) return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace lcs::binding
