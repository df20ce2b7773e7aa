#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "block_copy.h"
#include "lcs/images.h"
#include "lcs/lane_images.h"

namespace lcs {

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

// Brings float32 images to lanes and back, row by row of a group, from `images` on: those of the first group.
class LaneRows {
 public:
  LaneRows(const Images& images, const LaneImages& lanes);

  void load(const Images& images, int64_t group, int64_t row) const;  // with the border
  void store(const Images& images, int64_t group, int64_t row) const;
  // Channels [begin, end) of a group to contiguous images, of which the first channel is `begin`.
  void store_channels(const Images& images, int64_t group, int64_t row, int64_t begin, int64_t end) const;

 private:
  float* at(const Images& images, int64_t group, int64_t row) const;
  void copy(float* to, int64_t channel_stride, int64_t group, int64_t row, int64_t begin, int64_t end,
            void (*run)(const LaneCopy&)) const;

  const LaneImages lanes_;
  const std::vector<LaneSquare> squares_;
  const LaneBorders borders_;
};

}  // namespace lcs
