#include "lcs/sparse_conv2d_lanes.h"

#include <algorithm>
#include <vector>

#include "dispatch.h"
#include "sparse_conv2d_kernels.h"
#include "sparse_conv2d_layout.h"
#include "sparse_conv2d_sums.h"
#include "tasks.h"
#include "walk.h"

namespace lcs {
namespace {

constexpr int64_t kTasks = 8;         // enough to keep the threads even
constexpr int64_t kTileFloats = 112;  // of a row, whose input of a block of the weight fits the first-level cache

SparseConv2dKernels kernels() {
  return best(scalar::sparse_conv2d_kernels, avx2::sparse_conv2d_kernels, avx512::sparse_conv2d_kernels);
}

// Tiles of a row of vectors, none with too few to add up in order if the row has enough; they differ by one at most.
int64_t tiles_of(int64_t width, const SparseConv2dKernels& run) {
  const int64_t wanted = (width * run.lanes + kTileFloats / 2) / kTileFloats;
  return std::max(std::min(wanted, width / run.ordered_vectors), ceil_div(width, run.max_vectors));
}

class SparseConv2dLanes {
 public:
  SparseConv2dLanes(const SparseConv2dLanesArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        tiles_(tiles_of(args.y.width, kernels())),
        sums_(args.weight, kernels(), args.groups, args.x.channels / args.groups, args.x.channel_stride, taps()) {}

  // A thread's rows follow each other, so that it has most of what they read from the row before.
  void run() const {
    const int64_t rows = a_.y.groups * a_.y.height, channels = ceil_div(a_.y.channels, ceil_div(kTasks, rows)),
                  shares = ceil_div(a_.y.channels, channels);
    Tasks tasks(shares * rows);
    parallel_(shares * rows, 1, [&](int64_t begin, int64_t end) {
      Tasks::Taker taker(tasks, begin, end);
      SparseSums::Distances distances(sums_, channels, ceil_div(end - begin, shares) * tiles_);
      for (Tasks::Some some = taker.one(); some.begin < some.end; some = taker.one()) {
        const int64_t first = some.begin / rows * channels, row = some.begin % rows;
        row_of(row / a_.y.height, row % a_.y.height, first, std::min(a_.y.channels, first + channels), distances);
      }
    });
  }

 private:
  std::vector<int64_t> taps() const {
    std::vector<int64_t> taps;
    for (int64_t i = 0; i < a_.vertical.kernel; ++i)
      for (int64_t j = 0; j < a_.horizontal.kernel; ++j)
        taps.push_back(i * a_.vertical.dilation * a_.x.row_stride + j * a_.horizontal.dilation * a_.x.lanes);
    return taps;
  }

  // Output channels [begin, end) of one row.
  void row_of(int64_t group, int64_t row, int64_t begin, int64_t end, SparseSums::Distances& distances) const {
    const LaneImages &x = a_.x, &y = a_.y;
    const int32_t* const distance = distances.of(begin, end);
    const float* const from = x.at(group, 0, row * a_.vertical.stride - a_.vertical.padding, -a_.horizontal.padding);
    SparseTile tile{};
    tile.acc_stride = y.channel_stride;
    tile.step = int(a_.horizontal.stride);
    tile.scale = a_.scale, tile.bias = a_.bias;
    tile.relu = a_.relu, tile.cap = a_.cap;
    for (int64_t i = 0; i < tiles_; ++i) {
      const int64_t column = i * y.width / tiles_;
      tile.vectors = int((i + 1) * y.width / tiles_ - column);
      tile.x = from + column * tile.step * x.lanes;
      tile.acc = y.at(group, begin, row, column);
      if (a_.residual) {
        tile.residual = a_.residual->at(group, begin, row, column);
        tile.residual_stride = a_.residual->channel_stride;
      }
      sums_(begin, end, distance, tile);
    }
    clear_border(y, group, row, begin, end);
  }

  const SparseConv2dLanesArgs& a_;
  const Parallel& parallel_;
  const int64_t tiles_;
  const SparseSums sums_;
};

// Whether both ways of computing add each sum up in one order.
bool in_order(const SparseConv2dArgs& args) {
  SparseConv2dKernels run = kernels();
  const int64_t least = run.ordered_vectors;
  const Phases vertical(args.vertical), horizontal(args.horizontal);
  const SparseLayout layout = sparse_layout(args, vertical, horizontal, run);
  return args.y.width >= least && layout.least_tile(run.lanes) >= least;
}

}  // namespace

bool sparse_conv2d_takes_lanes(const SparseConv2dArgs& args) {
  const int64_t lanes = image_lanes();
  return lanes > 1 && args.dtype == DType::float32 && args.x.n > 0 && args.x.n % lanes == 0 &&
         args.y.channels * args.y.height * args.y.width != 0 && args.horizontal.stride <= 2 && in_order(args);
}

void sparse_conv2d_lanes(const SparseConv2dLanesArgs& args, const Parallel& parallel) {
  SparseConv2dLanes(args, parallel).run();
}

}  // namespace lcs
