#include "sparse_conv2d_sums.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "scratch.h"
#include "walk.h"

namespace lcs {
namespace {

constexpr int64_t kTilesToPrepare = 4;  // that pay for looking up all distances first

}  // namespace

SparseSums::SparseSums(const SparsePrepack& weight, const SparseConv2dKernels& kernels, int64_t groups, int64_t inputs,
                       int64_t channel, const std::vector<int64_t>& taps)
    : weight_(weight),
      accumulate_(kernels.accumulate),
      per_group_(weight.rows / groups),
      group_(inputs * channel),
      block_(weight.block / int64_t(taps.size()) * channel) {
  offset_.reserve(size_t(weight.block));
  for (int64_t c = 0; c < weight.block / int64_t(taps.size()); ++c)
    for (const int64_t tap : taps) {
      offset_.push_back(c * channel + tap);
      reach_ = std::max(reach_, offset_.back());
    }
}

SparseSums::Distances::Distances(const SparseSums& sums, int64_t rows, int64_t tiles)
    : s_(sums), rows_(rows), known_(ceil_div(sums.weight_.rows, rows)) {
  if (tiles < kTilesToPrepare || !sums.fits()) return;
  static thread_local Scratch<int32_t> scratch;
  all_ = scratch.reserve(std::max<int64_t>(sums.weight_.start[sums.weight_.blocks()], 1));
}

const int32_t* SparseSums::Distances::of(int64_t begin, int64_t end) {
  for (int64_t part = begin / rows_; all_ && part * rows_ < end; ++part) {
    if (!known_[part]) s_.look_up(part * rows_, std::min(s_.weight_.rows, (part + 1) * rows_), all_);
    known_[part] = true;
  }
  return all_;
}

bool SparseSums::fits() const { return reach_ <= std::numeric_limits<int32_t>::max(); }

bool SparseSums::look_up(int32_t* to) const {
  if (!fits()) return false;
  look_up(0, weight_.rows, to);
  return true;
}

void SparseSums::look_up(int64_t begin, int64_t end, int32_t* to) const {
  const SparsePrepack& w = weight_;
  for (int64_t b = 0; b < w.blocks(); ++b) {
    const int32_t* const count = w.count + b * w.rows;
    int64_t at = std::accumulate(count, count + begin, w.start[b]);
    const int64_t last = std::accumulate(count + begin, count + end, at);
    for (; at < last; ++at) to[at] = int32_t(offset_[w.index[at]]);
  }
}

void SparseSums::operator()(int64_t begin, int64_t end, const int32_t* distance, SparseTile tile) const {
  const SparsePrepack& w = weight_;
  const SparseTile given = tile;
  tile.offset = offset_.data();
  tile.blocks = w.blocks();
  for (int64_t b = 0; b < w.blocks(); ++b) {
    const int32_t* const count = w.count + b * w.rows;
    int64_t at = std::accumulate(count, count + begin, w.start[b]);
    tile.block = b;
    for (int64_t row = begin; row < end;) {
      const int64_t group = row / per_group_, stop = std::min(end, (group + 1) * per_group_), from = row - begin;
      tile.x = given.x + group * group_ + b * block_;
      tile.distance = distance ? distance + at : nullptr;
      tile.count = count + row, tile.index = w.index + at, tile.values = w.values + at;
      tile.acc = given.acc + from * tile.acc_stride, tile.y = given.y + from * tile.y_stride;
      if (given.residual) tile.residual = given.residual + from * tile.residual_stride;
      if (given.scale) tile.scale = given.scale + row;
      if (given.bias) tile.bias = given.bias + row;
      tile.rows = stop - row;
      accumulate_(tile);
      for (; row < stop && stop < end; ++row) at += count[row];  // of which the last group has no need
      row = stop;
    }
  }
}

}  // namespace lcs
