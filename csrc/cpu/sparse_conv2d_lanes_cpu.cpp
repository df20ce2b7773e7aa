#include "lcs/sparse_conv2d_lanes.h"

#include "sparse_conv2d_kernels.h"
#include "sparse_conv2d_layout.h"
#include "walk.h"

namespace lcs {
namespace {

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

}  // namespace lcs
