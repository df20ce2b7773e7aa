#include "lcs/lane_images.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "lane_rows.h"
#include "sparse_conv2d_kernels.h"
#include "walk.h"

namespace lcs {
namespace {

constexpr double kLeastUse = 0.75;      // of the lanes
constexpr double kNarrowVector = 0.75;  // time that one of half the lanes takes
constexpr double kShared = 0.25;        // time that a position of the border takes, relative to one of a block

// Those of n that are at most `most`.
std::vector<int64_t> divisors(int64_t n, int64_t most) {
  std::vector<int64_t> found;
  for (int64_t i = 1; i <= std::min(n, most); ++i)
    if (n % i == 0) found.push_back(i);
  return found;
}

// The squares of one channel of a row, from a group's first image on; or, channels last, of each column's first 8.
std::vector<LaneSquare> squares_of(const LaneGrid& grid, const Images& images, bool last) {
  std::vector<LaneSquare> squares;
  const int64_t width = last ? 1 : std::min(kLaneSquare, grid.width), used = grid.images * grid.blocks();
  for (int64_t first = 0; first < grid.lanes; first += kLaneSquare)
    for (int64_t next = 0; next < grid.width; next += width) {
      const int64_t column = std::min(next, grid.width - width);  // whole squares, if the last two overlap
      LaneSquare& s = squares.emplace_back();
      s.panel = column * grid.lanes + first;
      s.columns = last ? kLaneSquare : width;
      for (int64_t l = 0; l < kLaneSquare; ++l) {
        const int64_t lane = first + l, block = lane % grid.blocks();
        s.row[l] = lane / grid.blocks() * images.image_stride + block / grid.across * grid.height * images.row_stride +
                   (block % grid.across * grid.width + column) * images.column_stride;
        s.exist[l] = lane < used ? uint8_t((1 << s.columns) - 1) : 0;
      }
    }
  return squares;
}

}  // namespace

std::vector<LaneGrid> lane_grids(int64_t n, int64_t height, int64_t width) {
  std::vector<LaneGrid> found;
  const SparseConv2dKernels widest = sparse_conv2d_kernels();
  if (widest.lanes == 1) return found;
  const auto order = [](const LaneGrid& g) { return std::pair(lane_grid_cost(g), -g.width); };  // wide: for strides
  const auto before = [&](const LaneGrid& a, const LaneGrid& b) { return order(a) < order(b); };
  for (int64_t lanes = widest.lanes; lanes >= 8; lanes /= 2)
    for (const int64_t down : divisors(height, lanes))
      for (const int64_t across : divisors(width, lanes / down))
        for (const int64_t images : divisors(n, lanes / (down * across))) {
          const LaneGrid grid{lanes, images, down, across, height / down, width / across};
          const bool uses = double(images * grid.blocks()) >= kLeastUse * double(lanes);
          if (uses && grid.width >= widest.ordered_vectors)
            found.insert(std::upper_bound(found.begin(), found.end(), grid, before), grid);
        }
  return found;
}

double lane_grid_cost(const LaneGrid& grid) {
  const double positions = double(grid.height * grid.width),
               shared = grid.blocks() == 1 ? 0 : double((grid.height + 2) * (grid.width + 2)) - positions;
  return (grid.lanes == 8 ? kNarrowVector : 1) * (1 + kShared * shared / positions) /
         double(grid.images * grid.blocks());
}

LaneImages lane_images(const LaneGrid& grid, int64_t n, int64_t channels, int64_t border) {
  LaneImages images{nullptr, grid, n / grid.images, channels, border, 0, 0, 0};
  images.channel_stride = odd_lines((grid.width + 2 * border) * grid.lanes);
  images.row_stride = odd_lines(channels * images.channel_stride);
  images.group_stride = (grid.height + 2 * border) * images.row_stride;
  return images;
}

LaneBorders::LaneBorders(const LaneImages& images) : images_(images) {
  const LaneGrid& grid = images.grid;
  for (Lanes& lanes : neighbours_) lanes.fill(-1);
  if (images.border == 0) return;
  for (size_t i = 0; i < neighbours_.size(); ++i) {
    const int64_t down = int64_t(i) / 3 - 1, across = int64_t(i) % 3 - 1;
    size_t lane = 0;
    for (int64_t image = 0; image < grid.images; ++image)
      for (int64_t row = down; row < grid.down + down; ++row)
        for (int64_t column = across; column < grid.across + across; ++column, ++lane)
          if (row >= 0 && row < grid.down && column >= 0 && column < grid.across)
            neighbours_[i][lane] = int32_t(int64_t(lane) + down * grid.across + across);
  }
}

void LaneBorders::fill(int64_t group, int64_t row, int64_t begin, int64_t end) const {
  const LaneGrid& grid = images_.grid;
  const int64_t border = images_.border;
  if (border == 0) return;
  const auto share = sparse_conv2d_kernels(grid.lanes).share;
  const auto fill_row = [&](int64_t to, int64_t down) {
    const auto copy = [&](int64_t column, int64_t columns, int64_t across) {
      share({images_.at(group, begin, row, column - across * grid.width), images_.at(group, begin, to, column),
             neighbours(down, across).data(), columns, end - begin, images_.channel_stride});
    };
    copy(-border, border, -1);
    if (down != 0) copy(0, grid.width, 0);
    copy(grid.width, border, 1);
  };
  fill_row(row, 0);
  for (int64_t i = 1; i <= border; ++i) {
    // What is i rows above a block repeats a row of the one above it; zeros, if there is none, go with the first row.
    if (row == (grid.down == 1 ? 0 : grid.height - i)) fill_row(-i, -1);
    if (row == (grid.down == 1 ? grid.height : i) - 1) fill_row(grid.height + i - 1, 1);
  }
}

LaneRows::LaneRows(const Images& images, const LaneImages& lanes)
    : lanes_(lanes), squares_(squares_of(lanes.grid, images, images.channel_stride == 1)), borders_(lanes) {}

void LaneRows::load(const Images& images, int64_t group, int64_t row) const {
  copy(at(images, group, row), images.channel_stride, group, row, 0, lanes_.channels,
       sparse_conv2d_kernels(lanes_.grid.lanes).load_lanes);
  borders_.fill(group, row, 0, lanes_.channels);
}

void LaneRows::store(const Images& images, int64_t group, int64_t row) const {
  copy(at(images, group, row), images.channel_stride, group, row, 0, lanes_.channels,
       sparse_conv2d_kernels(lanes_.grid.lanes).store_lanes);
}

void LaneRows::store_channels(const Images& images, int64_t group, int64_t row, int64_t begin, int64_t end) const {
  copy(at(images, 0, row), images.channel_stride, group, row, begin, end,
       sparse_conv2d_kernels(lanes_.grid.lanes).store_lanes);
}

float* LaneRows::at(const Images& images, int64_t group, int64_t row) const {
  return static_cast<float*>(images.data) + group * lanes_.grid.images * images.image_stride + row * images.row_stride;
}

void LaneRows::copy(float* to, int64_t channel_stride, int64_t group, int64_t row, int64_t begin, int64_t end,
                    void (*run)(const LaneCopy&)) const {
  const bool last = channel_stride == 1;
  LaneCopy copy{to,
                lanes_.at(group, begin, row, 0),
                squares_.data(),
                int64_t(squares_.size()),
                1,
                last ? lanes_.channel_stride : lanes_.grid.lanes,
                end - begin,
                channel_stride,
                lanes_.channel_stride,
                DType::float32};
  if (!last) return run(copy);
  copy.count = 1, copy.stride = kLaneSquare, copy.panel_stride = kLaneSquare * lanes_.channel_stride;
  each_channel_square(squares_, copy, end - begin, run);
}

}  // namespace lcs
