#include "sparse_conv2d_rows.h"

#include <algorithm>

#include "scratch.h"
#include "walk.h"

namespace lcs {
namespace {

constexpr int64_t kTileFloats = 112;  // of a row, whose input of a block of the weight fits the first-level cache

// Tiles of a row of vectors, none with too few to add up in order if the row has enough; they differ by one at most.
int64_t tiles_of(int64_t width, const SparseConv2dKernels& run) {
  const int64_t wanted = (width * run.lanes + kTileFloats / 2) / kTileFloats;
  return std::max(std::min(wanted, width / run.ordered_vectors), ceil_div(width, run.max_vectors));
}

// Rows that a tile goes over: two have more taps of x in common than as many vectors of one, and fill the registers
// where rows are short.
int64_t lines_of(const LaneChainArgs::Conv& conv, const LaneImages& y, const SparseConv2dKernels& run) {
  const int64_t width = y.grid.width;
  const bool shares = width > run.max_vectors, fills = conv.horizontal.stride == 1 && 2 * width <= run.max_vectors;
  return shares || fills ? std::min<int64_t>(run.max_lines, y.grid.height) : 1;
}

std::vector<int64_t> taps(const LaneChainArgs::Conv& conv, const LaneImages& x) {
  std::vector<int64_t> taps;
  for (int64_t i = 0; i < conv.vertical.kernel; ++i)
    for (int64_t j = 0; j < conv.horizontal.kernel; ++j)
      taps.push_back(i * conv.vertical.dilation * x.row_stride + j * conv.horizontal.dilation * x.grid.lanes);
  return taps;
}

}  // namespace

SparseConv2dRows::SparseConv2dRows(const LaneChainArgs::Conv& conv, const std::vector<LaneImages>& images,
                                   const float* memory)
    : c_(conv),
      x_(images[conv.x]),
      y_(images[conv.y]),
      residual_(conv.residual ? std::optional(images[*conv.residual]) : std::nullopt),
      run_(sparse_conv2d_kernels(y_.grid.lanes)),
      lines_(lines_of(c_, y_, run_)),
      sums_(c_.weight, run_, conv.groups, x_.channels / conv.groups, x_.channel_stride, taps(conv, x_)),
      borders_(y_) {
  if (conv.behind) behind_.emplace(*conv.behind, images, memory);
}

int64_t SparseConv2dRows::tiles_of_band(int64_t lines) const {
  const int64_t width = y_.grid.width;
  return lines == 1 ? tiles_of(width, run_) : ceil_div(width * lines, run_.max_vectors);
}

void SparseConv2dRows::operator()(int64_t group, int64_t band, int64_t begin, int64_t end,
                                  const int32_t* distance) const {
  const int64_t row = band * lines_, lines = std::min(lines_, y_.grid.height - row), width = y_.grid.width,
                tiles = tiles_of_band(lines);
  const float* const from = x_.at(group, 0, row * c_.vertical.stride - c_.vertical.padding, -c_.horizontal.padding);
  SparseTile tile{};
  static thread_local Scratch<float> sums;
  tile.lines = int(lines);
  tile.x_line = c_.vertical.stride * x_.row_stride, tile.y_line = y_.row_stride;
  tile.acc_stride = odd_lines(lines * ceil_div(width, tiles) * run_.lanes);
  tile.acc = sums.reserve((end - begin) * tile.acc_stride);
  tile.y_stride = y_.channel_stride;
  tile.step = int(c_.horizontal.stride);
  tile.scale = c_.scale, tile.bias = c_.bias;
  tile.relu = c_.relu, tile.cap = c_.cap;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t column = i * width / tiles, columns = (i + 1) * width / tiles - column;
    tile.vectors = int(lines * columns);
    tile.acc_line = columns * run_.lanes;
    tile.x = from + column * tile.step * x_.grid.lanes;
    tile.y = y_.at(group, begin, row, column);
    if (residual_) {
      tile.residual = residual_->at(group, begin, row, column);
      tile.residual_stride = residual_->channel_stride, tile.residual_line = residual_->row_stride;
    }
    sums_(begin, end, distance, tile);
  }
  for (int64_t i = row; i < row + lines; ++i) {
    borders_.fill(group, i, begin, end);
    if (behind_) (*behind_)(group, i, begin, end);  // from the caches
  }
}

}  // namespace lcs
