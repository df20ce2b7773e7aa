// The bits of sparse_conv2d and line_norm, one after the other, on every instruction set, in every grid of lanes, for
// every way to split the work, with threads that share steps or take passes; a page that faults lies next to each
// array.
#include "lcs/lane_chain.h"

#include <set>

#include "conv_case.h"
#include "lcs/line_norm.h"
#include "lcs/sparse_conv2d_lanes.h"
#include "walk.h"

namespace {

using namespace lcs;
using namespace lcs::test;

struct Case {
  int64_t n, in, height, width;
  bool last;
};

constexpr int64_t kChannels = 12, kGroups = 3;
constexpr Axis kAxes[] = {{1, 1, 1, 3}, {2, 1, 1, 3}, {1, 0, 1, 1}, {1, 2, 1, 5}};
constexpr int64_t kConvGroups[] = {1, 4, 1, 12};
constexpr double kEps = 1e-3;

// x, a layer with a norm behind it, three more of which the third adds what the first of them made, and a norm that
// adds what the second made.
struct Layers {
  Images x, y[4], normed, result;
  std::deque<Guarded> data;
  std::deque<Weight> weights;
  std::vector<float> mean, var, scale, bias, line, shift;

  Layers(const Case& c, Guard guard) {
    std::mt19937 random(uint32_t(c.height));
    const auto draw = [&] { return float(random() % 4096) / 1024 - 2; };
    for (std::vector<float>* const vector : {&mean, &var, &scale, &bias})
      for (int64_t i = 0; i < kChannels; ++i) vector->push_back(vector == &var ? 1 + draw() / 4 : draw());
    x = add(c.n, c.in, c.height, c.width, c.last, guard);
    for (int64_t i = 0; i < count(x); ++i) static_cast<float*>(x.data)[i] = draw();
    int64_t in = c.in, height = c.height, width = c.width;
    for (size_t i = 0; i < 4; ++i) {
      const int64_t taps = kAxes[i].kernel * kAxes[i].kernel, columns = in / kConvGroups[i] * taps;
      weights.emplace_back(kChannels, columns, 2 * taps, 40, DType::float32, guard, uint32_t(i));
      height = output_size(kAxes[i], height), width = output_size(kAxes[i], width), in = kChannels;
      y[i] = add(c.n, in, height, width, c.last, guard);
      if (i == 0) normed = add(c.n, in, height, width, c.last, guard);
    }
    result = add(c.n, in, height, width, c.last, guard);
    line.resize(kChannels), shift.resize(kChannels);
    line_norm_lines(norm(y[0], normed, nullptr, true), line.data(), shift.data());
  }

  SparseConv2dArgs conv(size_t i) const {
    const Images& from = i == 0 ? x : i == 1 ? normed : y[i - 1];
    SparseConv2dArgs args{from,     y[i],           DType::float32,     kAxes[i],
                          kAxes[i], kConvGroups[i], weights[i].prepack, i % 2 ? bias.data() : nullptr,
                          i == 2};
    args.scale = i == 2 ? scale.data() : nullptr;
    args.residual = i == 3 ? y[1].data : nullptr;
    return args;
  }

  LineNormArgs norm(const Images& from, const Images& to, const void* residual, bool given) const {
    LineNormArgs args{};
    args.x = from.data, args.y = to.data, args.residual = residual;
    args.n = from.n, args.channels = kChannels, args.pixels = from.height * from.width, args.groups = kGroups;
    args.last = from.channel_stride == 1;
    args.weight = {scale.data(), nullptr, DType::float32}, args.bias = {bias.data(), nullptr, DType::float32};
    args.mean = given ? mean.data() : nullptr, args.var = given ? var.data() : nullptr;
    args.eps = kEps, args.relu = true, args.dtype = DType::float32;
    return args;
  }

  void run_ops(bool given) const {
    for (size_t i = 0; i < 4; ++i) {
      sparse_conv2d(conv(i), serial);
      if (i == 0) line_norm(norm(y[0], normed, nullptr, true), serial);
    }
    std::vector<float> statistics(size_t(2 * x.n * kGroups));
    LineNormArgs last = norm(y[3], result, y[2].data, given);
    if (!given) last.means = statistics.data(), last.rstds = last.means + x.n * kGroups;
    line_norm(last, serial);
  }

 private:
  Images add(int64_t n, int64_t channels, int64_t height, int64_t width, bool last, Guard guard) {
    void* const at = data.emplace_back(size_t(n * channels * height * width * 4), guard).as();
    return images(at, n, channels, height, width, last);
  }
};

// The grids of x and of what each layer makes; none: they do not follow from each other, or a border is too wide.
std::vector<LaneGrid> grids_of(const Layers& layers, const LaneGrid& first) {
  const auto holds = [](const LaneGrid& grid, int64_t border) {
    return grid.blocks() == 1 || border <= std::min(grid.height, grid.width);
  };
  std::optional<LaneGrid> next = lane_grid_of_x(layers.conv(0), first);
  if (!next || !holds(*next, 1)) return {};
  std::vector<LaneGrid> grids{*next};
  for (size_t i = 0; i < 4; ++i) {
    next = lane_grid_of_y(layers.conv(i), grids.back());
    if (!next || !holds(*next, 2)) return {};
    grids.push_back(*next);
  }
  return grids;
}

class Chain {
 public:
  Chain(const Layers& layers, const std::vector<LaneGrid>& grids, int64_t passes, bool given, bool shared, Guard guard)
      : layers_(layers),
        passes_(passes),
        result_(size_t(count(layers.result) * 4), guard),
        normed_(size_t(count(layers.normed) * 4), guard) {
    args_.passes = passes;
    const size_t x = add(layers.x, grids[0], 1), y0 = add(layers.y[0], grids[1], 0),
                 normed = add(layers.normed, grids[1], 2);
    const size_t y1 = add(layers.y[1], grids[2], 1), y2 = add(layers.y[2], grids[3], 2);
    const LaneChainArgs::Value& unread = args_.values[y0];  // when y2 is made
    if (args_.values[y2].images.floats() <= unread.images.floats()) args_.values[y2].at = unread.at;
    args_.steps.push_back(LaneChainArgs::Load{of_a_pass(layers.x, layers.x.data), x});
    convolve(0, x, y0);
    std::get<LaneChainArgs::Conv>(args_.steps.back()).behind = norm(y0, normed, {}, true);
    args_.steps.push_back(LaneChainArgs::Store{normed, of_a_pass(layers.normed, normed_.as())});
    convolve(1, normed, y1);
    convolve(2, y1, y2);
    convolve(3, y2, y1);
    finish(y1, y2, given);
    if (!shared) return;
    memory_.emplace(size_t(args_.floats * 4), guard);
    args_.memory = memory_->as<float>();
  }

  void check(const Parallel& parallel) const {
    const size_t results = size_t(count(layers_.result) * 4), normed = size_t(count(layers_.normed) * 4);
    if (memory_) std::memset(memory_->as(), 0xff, size_t(args_.floats * 4));
    std::memset(result_.as(), 0xff, results), std::memset(normed_.as(), 0xff, normed);
    lane_chain(args_, parallel);
    CHECK(std::memcmp(result_.as(), layers_.result.data, results) == 0);
    CHECK(std::memcmp(normed_.as(), layers_.normed.data, normed) == 0);
  }

 private:
  size_t add(const Images& t, const LaneGrid& grid, int64_t border) {
    args_.values.push_back({lane_images(grid, t.n / passes_, t.channels, border), args_.floats});
    args_.floats += args_.values.back().images.floats();
    return args_.values.size() - 1;
  }

  Images of_a_pass(Images all, void* data) const {
    all.data = data, all.n /= passes_;
    return all;
  }

  void convolve(size_t i, size_t x, size_t y) {
    const SparseConv2dArgs a = layers_.conv(i);
    const std::optional<size_t> residual = a.residual ? std::optional(y) : std::nullopt;
    args_.steps.push_back(LaneChainArgs::Conv{x, y, residual, a.vertical, a.horizontal, a.groups, a.weight, a.scale,
                                              a.bias, a.relu, a.cap, std::nullopt});
  }

  LaneChainArgs::Norm norm(size_t x, size_t y, std::optional<size_t> residual, bool given) const {
    const Layers& l = layers_;
    if (!given) return {x, y, residual, nullptr, nullptr, nullptr, 0, true};
    return {x, y, residual, l.mean.data(), l.line.data(), l.shift.data(), 0, true};
  }

  void finish(size_t x, size_t residual, bool given) {
    LaneChainArgs::Norm last = norm(x, x, residual, given);
    if (!given) {
      last.vectors = args_.floats;
      args_.floats += odd_lines(args_.values[x].images.groups * 3 * kChannels);
      args_.steps.push_back(
          LaneChainArgs::Statistics{x, last.vectors, kGroups, kEps, layers_.scale.data(), layers_.bias.data()});
    }
    args_.steps.push_back(last);
    args_.steps.push_back(LaneChainArgs::Store{x, of_a_pass(layers_.result, result_.as())});
  }

  const Layers& layers_;
  const int64_t passes_;
  const Guarded result_, normed_;
  LaneChainArgs args_{};
  std::optional<Guarded> memory_;
};

std::set<int64_t> blocks_in_lanes;  // of all cases

void check(const Layers& layers, const std::vector<LaneGrid>& grids, bool given, Isa isa, Guard guard) {
  const int64_t groups = layers.x.n / grids[0].images;
  blocks_in_lanes.insert(grids[0].blocks());
  for (const auto& [passes, shared] : {std::pair(int64_t{1}, true), {groups, true}, {groups, false}}) {
    const Chain chain(layers, grids, passes, given, shared, guard);
    for (const Parallel& parallel : ways(isa)) chain.check(parallel);
  }
}

void check(const Case& c, Guard guard) {
  const Layers layers(c, guard);
  for (const Isa isa : isas()) {
    set_max_isa(isa);
    for (size_t i = 0; i < 4; ++i) CHECK(sparse_conv2d_takes_lanes(layers.conv(i)));
    for (const bool given : {true, false}) {
      layers.run_ops(given);
      for (const LaneGrid& first : lane_grids(c.n, c.height, c.width)) {
        const std::vector<LaneGrid> grids = grids_of(layers, first);
        if (grids.empty() || (!given && (grids[0].images > 1 || c.last))) continue;
        check(layers, grids, given, isa, guard);
      }
    }
  }
}

}  // namespace

int main() {
  isas();
  constexpr Case kCases[] = {{1, 3, 56, 64, false}, {4, 8, 24, 28, true}, {16, 4, 9, 15, false}, {48, 5, 8, 8, true}};
  for (const Case& c : kCases)
    for (const Guard guard : kGuards) check(c, guard);
  CHECK(isas().back() == Isa::scalar || (blocks_in_lanes.contains(1) && blocks_in_lanes.size() > 3));
}
