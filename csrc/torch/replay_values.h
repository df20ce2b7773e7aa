#pragma once
#include "lcs/lane_images.h"
#include "replay_code.h"
#include "sparse_conv2d_binding.h"

namespace lcs::binding {

// What the steps of `replay` read and make: inputs, constants and results, as tensors or as images in lanes, or both.
class ReplayValues {
 public:
  // Of so many steps.
  ReplayValues(std::vector<Tensor> inputs, const std::vector<Tensor>& constants, size_t steps);

  void add(Tensor made) { values_[next_++] = {std::move(made), std::nullopt}; }
  void next() { ++next_; }  // has been computed in lanes
  void drop(int64_t value);
  size_t size() const { return next_; }

  const Tensor& tensor(Place place);
  ImagesKind kind(const char* op, Place place);  // of what is, or could be, a tensor of images

  // The grid of images that are in lanes; else null.
  const LaneGrid* grid(Place place) {
    return place.is_constant() || !value(place).lanes ? nullptr : &value(place).lanes->images.grid;
  }
  bool has(size_t value) const { return values_[value].tensor || values_[value].lanes; }  // maybe before its step
  // Whether images in lanes are no tensor, too, that lies otherwise than their kind says.
  bool lies_as_lanes(Place place);
  // In lanes of this grid; they keep the border of those that they are in already, and else get this one.
  const LaneImages& lanes(Place place, const LaneGrid& grid, int64_t border);
  // A value that is yet to be computed; or computed in place of another, which is dropped next.
  LaneImages add_lanes(const ImagesKind& kind, const LaneGrid& grid, int64_t border, size_t value);
  LaneImages add_lanes_of(const ImagesKind& kind, Place place, size_t value);

 private:
  struct Lanes {
    LaneImages images;
    Tensor memory;
    ImagesKind kind;
  };
  struct Value {
    std::optional<Tensor> tensor;
    std::optional<Lanes> lanes;
  };

  Lanes empty_lanes(const ImagesKind& kind, const LaneGrid& grid, int64_t border);
  Value& value(Place place);

  const std::vector<Tensor>& constants_;
  std::vector<Value> values_;
  size_t next_ = 0;
  std::vector<Tensor> free_;  // memory of lanes that were dropped, the last first to be taken again: caches hold it
};

}  // namespace lcs::binding
