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

  bool has_lanes(Place place) { return !place.is_constant() && value(place).lanes; }
  // With at least such a border, unless they are in lanes already.
  const LaneImages& lanes(Place place, int64_t border);
  // The next value, which is yet to be computed.
  LaneImages add_lanes(const ImagesKind& kind, int64_t border);

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

  static Lanes empty_lanes(const ImagesKind& kind, int64_t border);
  Value& value(Place place);

  const std::vector<Tensor>& constants_;
  std::vector<Value> values_;
};

}  // namespace lcs::binding
