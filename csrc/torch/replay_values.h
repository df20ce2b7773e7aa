#pragma once
#include "lcs/lane_images.h"
#include "replay_code.h"
#include "sparse_conv2d_binding.h"

namespace lcs::binding {

// What the steps of `replay` read and make: inputs, constants and results, as tensors or as images in lanes, or both.
class ReplayValues {
 public:
  ReplayValues(std::vector<Tensor> inputs, const std::vector<Tensor>& constants);

  void add(Tensor made) { values_.push_back({std::move(made), std::nullopt}); }
  void drop(int64_t value);
  size_t size() const { return values_.size(); }  // also the place of the next

  const Tensor& tensor(Place place);
  ImagesKind kind(const char* op, Place place);  // of what is, or could be, a tensor of images

  // The grid of images that are in lanes; else null.
  const LaneGrid* grid(Place place) {
    return place.is_constant() || !value(place).lanes ? nullptr : &value(place).lanes->images.grid;
  }
  // In lanes: in those that they are in already, or of this grid and with such a border.
  const LaneImages& lanes(Place place, const LaneGrid& grid, int64_t border);
  // The next value, which is yet to be computed; or computed in place of another, which is dropped next.
  LaneImages add_lanes(const ImagesKind& kind, const LaneGrid& grid, int64_t border);
  LaneImages add_lanes_of(const ImagesKind& kind, Place place);

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
  std::vector<Tensor> free_;  // memory of lanes that were dropped, the last first to be taken again: caches hold it
};

}  // namespace lcs::binding
