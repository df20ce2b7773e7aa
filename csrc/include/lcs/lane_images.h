#pragma once
#include <array>
#include <cstdint>
#include <optional>

#include "lcs/dtype.h"
#include "lcs/images.h"
#include "lcs/parallel.h"

namespace lcs {

// How images are dealt out to vectors: each of a group of `images` is cut into down x across blocks of height x width,
// each of which has a lane of its own, one image's after the other's, row after row. Lanes may be left.
struct LaneGrid {
  int64_t lanes, images, down, across, height, width;

  int64_t blocks() const { return down * across; }
  bool operator==(const LaneGrid&) const = default;
};

// The grid that wastes the least, whose blocks are no narrower than the kernels want; none where too much is wasted, or
// there are no vectors.
std::optional<LaneGrid> lane_grid(int64_t n, int64_t height, int64_t width);

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

// To lanes, with the border, and back, without.
void to_lanes(const Images& from, DType dtype, const LaneImages& to, const Parallel& parallel);
void from_lanes(const LaneImages& from, const Images& to, DType dtype, const Parallel& parallel);

// Fills borders from what they repeat of other blocks, and with zeros where an image ends.
class LaneBorders {
 public:
  explicit LaneBorders(const LaneImages& images);

  // All that repeats channels [begin, end) of a row, which is whole, or goes on beside it.
  void fill(int64_t group, int64_t row, int64_t begin, int64_t end) const;

 private:
  using Lanes = std::array<int32_t, 16>;  // where each lane's block has its neighbour; none: -1

  const Lanes& neighbours(int64_t down, int64_t across) const { return neighbours_[(down + 1) * 3 + across + 1]; }

  const LaneImages images_;
  std::array<Lanes, 9> neighbours_;
};

}  // namespace lcs
