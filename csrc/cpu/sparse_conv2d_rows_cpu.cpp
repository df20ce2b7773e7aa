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
      tiles_(tiles_of(y_.grid.width, run_)),
      sums_(c_.weight, run_, conv.groups, x_.channels / conv.groups, x_.channel_stride, taps(conv, x_)),
      borders_(y_) {
  if (conv.behind) behind_.emplace(*conv.behind, images, memory);
}

void SparseConv2dRows::operator()(int64_t group, int64_t row, int64_t begin, int64_t end,
                                  const int32_t* distance) const {
  const float* const from = x_.at(group, 0, row * c_.vertical.stride - c_.vertical.padding, -c_.horizontal.padding);
  SparseTile tile{};
  static thread_local Scratch<float> sums;
  tile.acc_stride = odd_lines(ceil_div(y_.grid.width, tiles_) * run_.lanes);
  tile.acc = sums.reserve((end - begin) * tile.acc_stride);
  tile.y_stride = y_.channel_stride;
  tile.step = int(c_.horizontal.stride);
  tile.scale = c_.scale, tile.bias = c_.bias;
  tile.relu = c_.relu, tile.cap = c_.cap;
  for (int64_t i = 0; i < tiles_; ++i) {
    const int64_t column = i * y_.grid.width / tiles_;
    tile.vectors = int((i + 1) * y_.grid.width / tiles_ - column);
    tile.x = from + column * tile.step * x_.grid.lanes;
    tile.y = y_.at(group, begin, row, column);
    if (residual_) {
      tile.residual = residual_->at(group, begin, row, column);
      tile.residual_stride = residual_->channel_stride;
    }
    sums_(begin, end, distance, tile);
  }
  borders_.fill(group, row, begin, end);
  if (behind_) (*behind_)(group, row, begin, end);  // from the caches
}

}  // namespace lcs
