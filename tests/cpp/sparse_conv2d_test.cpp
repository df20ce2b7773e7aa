// Equal to a loop over dense integers, whose float32 sums are exact, on every instruction set and for every way to
// split the work, and with images in lanes; a page that faults lies next to each array.
#include "lcs/sparse_conv2d.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "conv_case.h"
#include "lcs/lane_chain.h"
#include "lcs/line_norm.h"
#include "lcs/sparse_conv2d_lanes.h"
#include "walk.h"

namespace {

using namespace lcs;
using namespace lcs::test;

struct Case {
  int64_t n, in, height, width, out, groups;
  Axis vertical, horizontal;
};

constexpr float kInfinity = std::numeric_limits<float>::infinity();

constexpr Case kCases[] = {
    {2, 5, 7, 9, 6, 1, {1, 0, 1, 1}, {1, 0, 1, 1}},        // 1 x 1
    {1, 3, 9, 11, 9, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},       // 3 x 3
    {1, 2, 17, 15, 3, 1, {2, 3, 1, 7}, {2, 3, 1, 7}},      // 7 x 7, strided
    {2, 3, 8, 13, 3, 1, {3, 2, 1, 5}, {2, 0, 2, 3}},       // 5 x 3
    {2, 2, 6, 5, 3, 1, {1, 5, 1, 3}, {3, 4, 1, 3}},        // padding beyond the kernel
    {1, 2, 14, 13, 3, 1, {2, 4, 3, 3}, {3, 1, 2, 4}},      // dilated and strided
    {2, 12, 6, 5, 9, 3, {1, 1, 1, 3}, {1, 1, 1, 3}},       // groups
    {2, 6, 5, 7, 6, 6, {1, 1, 1, 3}, {2, 1, 1, 3}},        // depthwise
    {9, 4, 1, 1, 5, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},        // one pixel, one result
    {17, 3, 2, 2, 5, 1, {1, 0, 1, 2}, {1, 0, 1, 2}},       // one result
    {17, 3, 2, 3, 4, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},       // tiny images
    {9, 3, 4, 4, 4, 1, {2, 1, 1, 3}, {2, 1, 1, 3}},        // tiny images, strided
    {1, 2, 1, 130, 3, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},      // one row
    {1, 2, 130, 1, 3, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},      // one column
    {1, 40, 18, 200, 2, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},    // several bands
    {9, 2, 7, 6, 3, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},        // many panels
    {2, 1, 120, 120, 150, 1, {1, 0, 1, 1}, {1, 0, 1, 1}},  // written past the caches
    {16, 2, 7, 7, 3, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},       // whole vectors of images
    {16, 5, 3, 30, 4, 1, {1, 2, 2, 3}, {1, 3, 1, 7}},      // the same, tiles of a row, padding of two kinds
    {16, 2, 2, 8, 3, 1, {1, 3, 1, 5}, {1, 1, 1, 3}},       // the same, lower than their padding
    {32, 6, 9, 20, 9, 3, {2, 1, 1, 3}, {2, 0, 1, 3}},      // whole vectors of several groups of images, strided
    {16, 3, 6, 8, 20, 1, {3, 0, 1, 1}, {1, 0, 1, 1}},      // the same, few rows
    {1, 5, 28, 28, 9, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},      // vectors of blocks of an image
    {1, 5, 20, 18, 9, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},      // the same, five or three of them below each other
    {3, 4, 14, 14, 9, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},      // the same, of which some are left
    {16, 4, 0, 14, 9, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},      // nothing but padding
    {2, 4, 24, 28, 8, 2, {2, 1, 1, 3}, {2, 1, 1, 3}},      // the same, of two images, strided
    {4, 4, 14, 28, 9, 1, {1, 4, 2, 5}, {1, 2, 1, 5}},      // the same, wide borders
    {12, 3, 7, 7, 9, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},       // the same, rows
    {3, 2, 7, 7, 9, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},        // vectors of rows, of several images
    {1, 2, 15, 13, 9, 1, {2, 1, 1, 3}, {2, 1, 1, 3}},      // the same, strided
    {1, 12, 15, 30, 40, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},    // blocks of an image
    {5, 17, 7, 7, 40, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},      // blocks of several images
    {1, 8, 15, 13, 40, 1, {2, 1, 1, 3}, {2, 1, 1, 3}},     // blocks of a strided image
    {0, 2, 7, 6, 3, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},        // no images
    {2, 0, 7, 6, 3, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},        // no inputs
    {2, 2, 7, 6, 0, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},        // no outputs
    {2, 2, 0, 6, 3, 1, {1, 1, 1, 1}, {1, 1, 1, 1}},        // no pixels
};

std::vector<float> convolved(const Case& c, const SparseConv2dArgs& a, const std::vector<float>& w) {
  const Padded x(a.x, a.dtype, a.vertical, a.horizontal);
  std::vector<float> found(size_t(count(a.y)));
  convolve(x, {w.begin(), w.end()}, a.y, c.in / c.groups, c.groups, a.vertical, a.horizontal,
           [&](int64_t i, int64_t o, double sum) {
             const float y = float(sum) * (a.scale ? a.scale[o] : 1.0f) + (a.bias ? a.bias[o] : 0.0f) +
                             (a.residual ? get(a.residual, i, a.dtype) : 0.0f);
             found[size_t(i)] = std::min(a.relu && y < 0.0f ? 0.0f : y, a.cap);
           });
  return found;
}

// Whether images in lanes and their borders hold what `whole` has there, and zeros around it.
bool hold(const LaneImages& images, const Images& whole) {
  const LaneGrid& grid = images.grid;
  bool same = true;
  for (int64_t i = 0; i < whole.n * grid.blocks(); ++i) {
    const int64_t n = i / grid.blocks(), block = i % grid.blocks(), lane = n % grid.images * grid.blocks() + block;
    for (int64_t c = 0; c < whole.channels; ++c)
      for (int64_t row = -images.border; row < grid.height + images.border; ++row)
        for (int64_t column = -images.border; column < grid.width + images.border; ++column) {
          const int64_t h = block / grid.across * grid.height + row, w = block % grid.across * grid.width + column;
          const bool inside = h >= 0 && h < whole.height && w >= 0 && w < whole.width;
          same &= images.at(n / grid.images, c, row, column)[lane] ==
                  (inside ? get(whole.data, at(whole, n, c, h, w), DType::float32) : 0.0f);
        }
  }
  return same;
}

std::set<int64_t> blocks_in_lanes;  // of all cases

std::optional<LaneGrid> grid_of(const Images& y) {
  const std::vector<LaneGrid> grids = lane_grids(y.n, y.height, y.width);
  return grids.empty() ? std::nullopt : std::optional(grids.front());
}

// The convolution in lanes, between others: twice the result less 3, and what that is behind a ReLU.
class InLanes {
 public:
  static bool takes(const SparseConv2dArgs& a) {
    const std::optional<LaneGrid> grid = grid_of(a.y), from = grid ? lane_grid_of_x(a, *grid) : grid;
    return sparse_conv2d_takes_lanes(a) && from &&
           (grid->blocks() == 1 || border_of_x(a) <= std::min(from->height, from->width));
  }

  InLanes(const SparseConv2dArgs& a, bool in_passes, bool shared, Guard guard)
      : a_(a), doubled_(count(a.y) * 4, guard), positive_(count(a.y) * 4, guard) {
    const LaneGrid grid = *grid_of(a.y), from = *lane_grid_of_x(a, grid);
    CHECK(lane_grid_of_y(a, from) == grid);
    blocks_in_lanes.insert(grid.blocks());
    chain_.passes = in_passes ? a.y.n / grid.images : 1;
    const size_t x = add(a.x, from, border_of_x(a)), residual = add(a.y, grid, 1), y = add(a.y, grid, 1),
                 doubled = add(a.y, grid, 2), positive = add(a.y, grid, 0);
    chain_.steps.push_back(LaneChainArgs::Load{of_a_pass(a.x, a.x.data), x});
    if (a.residual)
      chain_.steps.push_back(LaneChainArgs::Load{of_a_pass(a.y, const_cast<void*>(a.residual)), residual});
    for (auto* const vector : {&zeros_, &twos_, &shifts_, &ones_}) vector->resize(size_t(a.y.channels));
    std::fill(twos_.begin(), twos_.end(), 2.0f), std::fill(ones_.begin(), ones_.end(), 1.0f);
    std::fill(shifts_.begin(), shifts_.end(), -3.0f);
    const LaneChainArgs::Norm behind{y, doubled, {}, zeros_.data(), twos_.data(), shifts_.data(), 0, false};
    chain_.steps.push_back(LaneChainArgs::Conv{x, y, a.residual ? std::optional(residual) : std::nullopt, a.vertical,
                                               a.horizontal, a.groups, a.weight, a.scale, a.bias, a.relu, a.cap,
                                               behind});
    chain_.steps.push_back(
        LaneChainArgs::Norm{doubled, positive, {}, zeros_.data(), ones_.data(), zeros_.data(), 0, true});
    if (grid.images == 1) measure(y, residual, add(a.y, grid, 1));
    chain_.steps.push_back(LaneChainArgs::Store{y, of_a_pass(a.y, a.y.data)});
    chain_.steps.push_back(LaneChainArgs::Store{doubled, of_a_pass(a.y, doubled_.as())});
    chain_.steps.push_back(LaneChainArgs::Store{positive, of_a_pass(a.y, positive_.as())});
    if (!shared) return;
    memory_.emplace(chain_.floats * 4, guard);
    chain_.memory = memory_->as<float>();
    std::fill_n(chain_.memory, chain_.floats, std::numeric_limits<float>::quiet_NaN());
  }

  void run(const Parallel& parallel) const {
    lane_chain(chain_, parallel);
    for (int64_t i = 0; i < count(a_.y); ++i) {
      const float wanted = 2 * static_cast<const float*>(a_.y.data)[i] - 3;
      CHECK(doubled_.as<float>()[i] == wanted && positive_.as<float>()[i] == std::max(wanted, 0.0f));
    }
    if (measured_) check_measured();
    if (!chain_.memory || chain_.passes > 1) return;
    const void* const of[] = {a_.x.data, nullptr, a_.y.data, doubled_.as(), positive_.as()};
    for (size_t i = 0; i < std::size(of); ++i) {
      Images whole = i == 0 ? a_.x : a_.y;
      whole.data = const_cast<void*>(of[i]);
      LaneImages images = chain_.values[i].images;
      images.data = chain_.memory + chain_.values[i].at;
      CHECK(!of[i] || hold(images, whole));
    }
  }

 private:
  static int64_t border_of_x(const SparseConv2dArgs& a) { return std::max(a.vertical.padding, a.horizontal.padding); }

  // A norm of each image's own statistics, and the residual added to it.
  void measure(size_t y, size_t residual, size_t to) {
    const int64_t n = a_.y.n / chain_.passes, channels = a_.y.channels;
    const int64_t vectors = std::exchange(chain_.floats, chain_.floats + odd_lines(n * 3 * channels));
    chain_.steps.push_back(
        LaneChainArgs::Statistics{y, vectors, groups_of(channels), 0.5, twos_.data(), shifts_.data()});
    const std::optional<size_t> added = a_.residual ? std::optional(residual) : std::nullopt;
    chain_.steps.push_back(LaneChainArgs::Norm{y, to, added, nullptr, nullptr, nullptr, vectors, true});
    measured_.emplace(count(a_.y) * 4, Guard::behind);
    Images nchw = a_.y;
    nchw.image_stride = a_.y.channels * a_.y.height * a_.y.width, nchw.channel_stride = a_.y.height * a_.y.width;
    nchw.row_stride = a_.y.width, nchw.column_stride = 1;
    nchw_ = nchw;
    nchw.data = measured_->as(), nchw.n /= chain_.passes;
    chain_.steps.push_back(LaneChainArgs::Store{to, nchw});
  }
  static int64_t groups_of(int64_t channels) { return channels % 3 ? 1 : 3; }

  void check_measured() const {
    const Guarded x(count(a_.y) * 4, Guard::behind), residual(count(a_.y) * 4, Guard::behind),
        y(count(a_.y) * 4, Guard::behind), statistics(a_.y.n * 2 * groups_of(a_.y.channels) * 4, Guard::behind);
    for (int64_t n = 0; n < a_.y.n; ++n)
      for (int64_t c = 0; c < a_.y.channels; ++c)
        for (int64_t h = 0; h < a_.y.height; ++h)
          for (int64_t w = 0; w < a_.y.width; ++w) {
            const int64_t to = at(nchw_, n, c, h, w), from = at(a_.y, n, c, h, w);
            x.as<float>()[to] = static_cast<const float*>(a_.y.data)[from];
            residual.as<float>()[to] = a_.residual ? get(a_.residual, from, DType::float32) : 0.0f;
          }
    LineNormArgs norm{};
    norm.x = x.as(), norm.y = y.as(), norm.residual = a_.residual ? residual.as() : nullptr;
    norm.n = a_.y.n, norm.channels = a_.y.channels, norm.pixels = a_.y.height * a_.y.width;
    norm.groups = groups_of(norm.channels), norm.eps = 0.5, norm.relu = true, norm.dtype = DType::float32;
    norm.weight = {twos_.data(), nullptr, DType::float32}, norm.bias = {shifts_.data(), nullptr, DType::float32};
    norm.means = statistics.as<float>(), norm.rstds = norm.means + norm.n * norm.groups;
    line_norm(norm, serial);
    CHECK(std::memcmp(y.as(), measured_->as(), size_t(count(a_.y) * 4)) == 0);
  }

  size_t add(const Images& t, const LaneGrid& grid, int64_t border) {
    border = grid.blocks() == 1 ? border : std::min({border, grid.height, grid.width});
    chain_.values.push_back({lane_images(grid, t.n / chain_.passes, t.channels, border), chain_.floats});
    chain_.floats += chain_.values.back().images.floats();
    return chain_.values.size() - 1;
  }

  Images of_a_pass(Images all, void* data) const {
    all.data = data;
    all.n /= chain_.passes;
    return all;
  }

  const SparseConv2dArgs& a_;
  const Guarded doubled_, positive_;
  std::vector<float> zeros_, twos_, shifts_, ones_;
  LaneChainArgs chain_{};
  std::optional<Guarded> memory_, measured_;
  Images nchw_{};
};

// Sums stay below 256 where the dtype is bfloat16, which then holds them.
void check(const Case& c, DType dtype, int percent, int64_t channels, bool last, Guard guard) {
  const int64_t taps = c.vertical.kernel * c.horizontal.kernel, columns = c.in / c.groups * taps;
  const int64_t height = output_size(c.vertical, c.height), width = output_size(c.horizontal, c.width);
  const Weight weight(c.out, columns, channels * taps, percent, dtype, guard, uint32_t(columns + c.out));
  const int64_t inputs = c.n * c.in * c.height * c.width, outputs = c.n * c.out * height * width;
  const Guarded x(inputs * size_of(dtype), guard), y(outputs * size_of(dtype), guard),
      residual(outputs * size_of(dtype), guard), bias(c.out * 4, guard), scale(c.out * 4, guard);
  fill(x, inputs, dtype, uint32_t(inputs));
  fill(residual, outputs, dtype, 5);
  fill(bias, c.out, DType::float32, 3);
  for (int64_t o = 0; o < c.out; ++o) scale.as<float>()[o] = o % 3 ? 1.0f : -1.0f;
  const SparseConv2dArgs args{images(x.as(), c.n, c.in, c.height, c.width, last),
                              images(y.as(), c.n, c.out, height, width, last),
                              dtype,
                              c.vertical,
                              c.horizontal,
                              c.groups,
                              weight.prepack,
                              last ? nullptr : bias.as<float>(),
                              guard == Guard::behind,
                              percent % 2 ? scale.as<float>() : nullptr,
                              guard == Guard::behind && percent % 2 ? 6.0f : kInfinity,
                              percent == 60 ? nullptr : residual.as()};
  const std::vector<float> wanted = convolved(c, args, weight.dense);
  for (const Isa isa : isas())
    for (const Parallel& parallel : ways(isa)) {
      set_max_isa(isa);
      const auto check_made = [&] {
        for (int64_t i = 0; i < outputs; ++i) CHECK(get(y.as(), i, dtype) == wanted[i]);
        std::memset(y.as(), 0xff, size_t(outputs * size_of(dtype)));
      };
      std::memset(y.as(), 0xff, size_t(outputs * size_of(dtype)));
      sparse_conv2d(args, parallel);
      check_made();
      if (!InLanes::takes(args)) continue;
      for (const auto& [in_passes, shared] : {std::pair(false, true), {true, true}, {true, false}}) {
        InLanes(args, in_passes, shared, guard).run(parallel);
        check_made();
      }
    }
}

}  // namespace

int main() {
  isas();
  for (const Case& c : kCases)
    for (const bool last : {false, true})
      for (const Guard guard : kGuards) {
        check(c, DType::float32, 60, 2, last, guard);
        check(c, DType::float32, 61, 2, last, guard);
        check(c, DType::bfloat16, c.in > 20 ? 5 : 30, c.in + 1, last, guard);
      }
  CHECK(isas().back() == Isa::scalar || (blocks_in_lanes.contains(1) && blocks_in_lanes.size() > 3));
}
