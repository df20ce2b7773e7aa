#include "lcs/sparse_conv2d_lanes.h"

#include <algorithm>
#include <vector>

#include "line_norm_rows.h"
#include "scratch.h"
#include "sparse_conv2d_kernels.h"
#include "sparse_conv2d_layout.h"
#include "sparse_conv2d_sums.h"
#include "tasks.h"
#include "walk.h"

namespace lcs {
namespace {

constexpr int64_t kTasks = 8;            // enough to keep the threads even
constexpr int64_t kKeptBytes = 1 << 19;  // of a weight that stays in the second-level cache from row to row
constexpr int64_t kTileFloats = 112;     // of a row, whose input of a block of the weight fits the first-level cache

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
        run_(sparse_conv2d_kernels(args.y.grid.lanes)),
        tiles_(tiles_of(args.y.grid.width, run_)),
        sums_(args.weight, run_, args.groups, args.x.channels / args.groups, args.x.channel_stride, taps()),
        borders_(args.y),
        behind_(args.behind ? std::optional<LineNormRows>(*args.behind) : std::nullopt) {}

  // A thread's rows follow each other, so that it has most of what they read from the row before. Where they are few,
  // a thread takes all channels of its rows, and reads little that another has just written; or, of a large weight, all
  // rows of its channels.
  void run() const {
    const int64_t rows = a_.y.groups * a_.y.grid.height, channels = ceil_div(a_.y.channels, ceil_div(kTasks, rows)),
                  shares = ceil_div(a_.y.channels, channels);
    const int64_t values = a_.weight.start[a_.weight.blocks()],
                  bytes = values * int64_t{sizeof(float) + sizeof(int32_t)};
    const bool by_row = bytes <= kKeptBytes;
    Tasks tasks(shares * rows);
    parallel_(shares * rows, 1, [&](int64_t begin, int64_t end) {
      Tasks::Taker taker(tasks, begin, end);
      SparseSums::Distances distances(sums_, channels, ceil_div(end - begin, shares) * tiles_);
      for (Tasks::Some some = taker.one(); some.begin < some.end; some = taker.one()) {
        const int64_t share = by_row ? some.begin % shares : some.begin / rows, first = share * channels,
                      row = by_row ? some.begin / shares : some.begin % rows;
        row_of(row / a_.y.grid.height, row % a_.y.grid.height, first, std::min(a_.y.channels, first + channels),
               distances);
      }
    });
  }

 private:
  std::vector<int64_t> taps() const {
    std::vector<int64_t> taps;
    for (int64_t i = 0; i < a_.vertical.kernel; ++i)
      for (int64_t j = 0; j < a_.horizontal.kernel; ++j)
        taps.push_back(i * a_.vertical.dilation * a_.x.row_stride + j * a_.horizontal.dilation * a_.x.grid.lanes);
    return taps;
  }

  // Output channels [begin, end) of one row.
  void row_of(int64_t group, int64_t row, int64_t begin, int64_t end, SparseSums::Distances& distances) const {
    const LaneImages &x = a_.x, &y = a_.y;
    const int32_t* const distance = distances.of(begin, end);
    const float* const from = x.at(group, 0, row * a_.vertical.stride - a_.vertical.padding, -a_.horizontal.padding);
    SparseTile tile{};
    static thread_local Scratch<float> sums;
    tile.acc_stride = odd_lines(ceil_div(y.grid.width, tiles_) * run_.lanes);
    tile.acc = sums.reserve((end - begin) * tile.acc_stride);
    tile.y_stride = y.channel_stride;
    tile.step = int(a_.horizontal.stride);
    tile.scale = a_.scale, tile.bias = a_.bias;
    tile.relu = a_.relu, tile.cap = a_.cap;
    for (int64_t i = 0; i < tiles_; ++i) {
      const int64_t column = i * y.grid.width / tiles_;
      tile.vectors = int((i + 1) * y.grid.width / tiles_ - column);
      tile.x = from + column * tile.step * x.grid.lanes;
      tile.y = y.at(group, begin, row, column);
      if (a_.residual) {
        tile.residual = a_.residual->at(group, begin, row, column);
        tile.residual_stride = a_.residual->channel_stride;
      }
      sums_(begin, end, distance, tile);
    }
    borders_.fill(group, row, begin, end);
    if (behind_) (*behind_)(group, row, begin, end);  // from the caches
  }

  const SparseConv2dLanesArgs& a_;
  const Parallel& parallel_;
  const SparseConv2dKernels run_;
  const int64_t tiles_;
  const SparseSums sums_;
  const LaneBorders borders_;
  const std::optional<LineNormRows> behind_;
};

// Whether sparse_conv2d adds each sum up in order, too.
bool in_order(const SparseConv2dArgs& args) {
  SparseConv2dKernels run = sparse_conv2d_kernels();
  const Phases vertical(args.vertical), horizontal(args.horizontal);
  return sparse_layout(args, vertical, horizontal, run).least_tile >= run.ordered_vectors;
}

}  // namespace

bool sparse_conv2d_takes_lanes(const SparseConv2dArgs& args) {
  const Images &x = args.x, &y = args.y;
  return args.dtype == DType::float32 && x.n * x.channels * x.height * x.width != 0 &&
         y.channels * y.height * y.width != 0 && args.horizontal.stride <= 2 && in_order(args);
}

std::optional<LaneGrid> lane_grid_of_x(const SparseConv2dArgs& a, const LaneGrid& y) {
  LaneGrid x = y;
  x.height = y.down == 1 ? a.x.height : y.height * a.vertical.stride;
  x.width = y.across == 1 ? a.x.width : y.width * a.horizontal.stride;
  if (x.height * x.down != a.x.height || x.width * x.across != a.x.width) return std::nullopt;
  return x;
}

std::optional<LaneGrid> lane_grid_of_y(const SparseConv2dArgs& a, const LaneGrid& x) {
  LaneGrid y = x;
  y.height = a.y.height / x.down, y.width = a.y.width / x.across;
  const bool fits = y.height * y.down == a.y.height && y.width * y.across == a.y.width &&
                    y.width >= sparse_conv2d_kernels().ordered_vectors && lane_grid_of_x(a, y) == x;
  return fits ? std::optional(y) : std::nullopt;
}

void sparse_conv2d_lanes(const SparseConv2dLanesArgs& args, const Parallel& parallel) {
  SparseConv2dLanes(args, parallel).run();
}

}  // namespace lcs
