#include "lcs/lane_images.h"

#include <algorithm>
#include <vector>

#include "dispatch.h"
#include "sparse_conv2d_kernels.h"
#include "walk.h"

namespace lcs {
namespace {

SparseConv2dKernels kernels() {
  return best(scalar::sparse_conv2d_kernels, avx2::sparse_conv2d_kernels, avx512::sparse_conv2d_kernels);
}

// The squares of one channel of a row, from a group's first image on; or, channels last, of each column's first 8.
std::vector<LaneSquare> squares_of(const LaneImages& lanes, const Images& images, bool last) {
  std::vector<LaneSquare> squares;
  const int64_t width = last ? 1 : std::min(kLaneSquare, lanes.width);
  for (int64_t first = 0; first < lanes.lanes; first += kLaneSquare)
    for (int64_t next = 0; next < lanes.width; next += width) {
      const int64_t column = std::min(next, lanes.width - width);  // whole squares, if the last two overlap
      LaneSquare& s = squares.emplace_back();
      s.panel = column * lanes.lanes + first;
      s.columns = last ? kLaneSquare : width;
      for (int64_t l = 0; l < kLaneSquare; ++l) {
        s.row[l] = (first + l) * images.image_stride + column * images.column_stride;
        s.exist[l] = uint8_t((1 << s.columns) - 1);
      }
    }
  return squares;
}

// `run` of every square of a row; between `rows`, of the group's first image, and `panel`, both of channel 0.
void copy_row(const LaneImages& lanes, const Images& images, DType dtype, const std::vector<LaneSquare>& squares,
              void* rows, float* panel, void (*run)(const LaneCopy&)) {
  const bool last = images.channel_stride == 1;
  LaneCopy copy{rows,
                panel,
                squares.data(),
                int64_t(squares.size()),
                1,
                last ? lanes.channel_stride : lanes.lanes,
                lanes.channels,
                images.channel_stride,
                lanes.channel_stride,
                dtype};
  if (!last) return run(copy);
  copy.count = 1, copy.stride = kLaneSquare, copy.panel_stride = kLaneSquare * lanes.channel_stride;
  each_channel_square(squares, copy, lanes.channels, run);
}

template <class Copy>
void each_row(const LaneImages& lanes, const Images& images, DType dtype, const Parallel& parallel, const Copy& copy) {
  const std::vector<LaneSquare> squares = squares_of(lanes, images, images.channel_stride == 1);
  parallel(lanes.groups * lanes.height, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / lanes.height, row = i % lanes.height,
                    place = group * lanes.lanes * images.image_stride + row * images.row_stride;
      copy(group, row, squares, advance(images.data, place, dtype));
    }
  });
}

// `floats` of whole vectors of 8, inline.
void clear(float* p, int64_t floats) {
  for (int64_t i = 0; i < floats; i += kLaneSquare) std::fill_n(p + i, kLaneSquare, 0.0f);
}

}  // namespace

int64_t image_lanes() { return kernels().lanes; }

LaneImages lane_images(int64_t n, int64_t channels, int64_t height, int64_t width, int64_t border) {
  LaneImages images{nullptr, image_lanes(), 0, channels, height, width, border};
  images.groups = n / images.lanes;
  images.channel_stride = odd_lines((width + 2 * border) * images.lanes);
  images.row_stride = odd_lines(channels * images.channel_stride);
  images.group_stride = (height + 2 * border) * images.row_stride;
  return images;
}

void clear_border(const LaneImages& images, int64_t group, int64_t row, int64_t begin, int64_t end) {
  const int64_t side = images.border * images.lanes, width = images.width * images.lanes;
  for (int64_t c = begin; c < end; ++c) {
    float* const inside = images.at(group, c, row, 0);
    clear(inside - side, side);
    clear(inside + width, side);
  }
  const auto clear_rows = [&](int64_t first, int64_t last) {
    for (int64_t outside = first; outside < last; ++outside)
      for (int64_t c = begin; c < end; ++c) clear(images.at(group, c, outside, -images.border), width + 2 * side);
  };
  if (row == 0) clear_rows(-images.border, 0);
  if (row == images.height - 1) clear_rows(images.height, images.height + images.border);
}

void to_lanes(const Images& from, DType dtype, const LaneImages& to, const Parallel& parallel) {
  const SparseConv2dKernels run = kernels();
  each_row(to, from, dtype, parallel, [&](int64_t group, int64_t row, const auto& squares, void* rows) {
    copy_row(to, from, dtype, squares, rows, to.at(group, 0, row, 0), run.load_lanes);
    clear_border(to, group, row, 0, to.channels);
  });
}

void from_lanes(const LaneImages& from, const Images& to, DType dtype, const Parallel& parallel) {
  const SparseConv2dKernels run = kernels();
  each_row(from, to, dtype, parallel, [&](int64_t group, int64_t row, const auto& squares, void* rows) {
    copy_row(from, to, dtype, squares, rows, from.at(group, 0, row, 0), run.store_lanes);
  });
}

}  // namespace lcs
