#pragma once
#include <cstdint>
#include <vector>

namespace lcs {

// How images are dealt out to vectors: each of a group of `images` is cut into down x across blocks of height x width,
// each of which has a lane of its own, one image's after the other's, row after row. Lanes may be left.
struct LaneGrid {
  int64_t lanes, images, down, across, height, width;

  int64_t blocks() const { return down * across; }
  bool operator==(const LaneGrid&) const = default;
};

// Grids whose blocks are no narrower than the kernels want, what wastes less first; none where all waste too much, or
// there are no vectors.
std::vector<LaneGrid> lane_grids(int64_t n, int64_t height, int64_t width);

// Time for each position of an image, in that of a multiplication of vectors of 16 lanes.
double lane_grid_cost(const LaneGrid& grid);

// float32 images in lanes: group after group, and in these row after row of the blocks, in a row channel after channel,
// and at each position a float of every lane, with `border` positions all around, in which a block's neighbours go on,
// or zeros; where they do, it is no wider than a block, nor higher. Taps of all positions read whole vectors, and from
// one convolution to the next only borders are copied.
struct LaneImages {
  float* data;
  LaneGrid grid;
  int64_t groups, channels, border;
  int64_t channel_stride, row_stride, group_stride;  // in floats

  float* at(int64_t group, int64_t channel, int64_t row, int64_t column) const {
    return data + group * group_stride + (row + border) * row_stride + channel * channel_stride +
           (column + border) * grid.lanes;
  }
  int64_t floats() const { return groups * group_stride; }
};

// Of n images; without data.
LaneImages lane_images(const LaneGrid& grid, int64_t n, int64_t channels, int64_t border);

}  // namespace lcs
