#include "replay_values.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "images_binding.h"

namespace lcs::binding {

ReplayValues::ReplayValues(std::vector<Tensor> inputs, const std::vector<Tensor>& constants, size_t steps)
    : constants_(constants), values_(inputs.size() + steps) {
  for (Tensor& input : inputs) add(std::move(input));
}

void ReplayValues::drop(int64_t value) {
  STD_TORCH_CHECK(value >= 0 && value < int64_t(next_), kReplay, ": there is no value ", value);
  Value& dropped = values_[size_t(value)];
  if (dropped.lanes) free_.push_back(std::move(dropped.lanes->memory));
  dropped = {};
}

ReplayValues::Value& ReplayValues::value(Place place) {
  STD_TORCH_CHECK(place.at >= 0 && place.index() < next_, kReplay, ": there is no value ", place.at / 2);
  Value& found = values_[place.index()];
  STD_TORCH_CHECK(found.tensor || found.lanes, kReplay, ": value ", place.index(), " was dropped");
  return found;
}

const Tensor& ReplayValues::tensor(Place place) {
  if (place.at >= 0 && place.is_constant()) {
    STD_TORCH_CHECK(place.index() < constants_.size(), kReplay, ": there is no constant ", place.index());
    return constants_[place.index()];
  }
  Value& found = value(place);
  if (!found.tensor) {
    const ImagesKind& kind = found.lanes->kind;
    Tensor made = empty_images(kind.size, kind.type, kind.last);
    from_lanes(found.lanes->images, images(made, made.mutable_data_ptr(), kind.last), DType::float32, parallel);
    found.tensor = std::move(made);
  }
  return *found.tensor;
}

ImagesKind ReplayValues::kind(const char* op, Place place) {
  if (!grid(place)) return images_kind(op, tensor(place));
  ImagesKind kind = value(place).lanes->kind;
  kind.last = kind.last && kind.size[1] != 1;  // which is contiguous, too
  return kind;
}

bool ReplayValues::lies_as_lanes(Place place) {
  const Value& found = value(place);
  if (!found.lanes || !found.tensor) return found.lanes.has_value();
  const ImagesKind& kind = found.lanes->kind;
  return lies_as(*found.tensor, kind.size, kind.type, kind.last);
}

const LaneImages& ReplayValues::lanes(Place place, const LaneGrid& grid, int64_t border) {
  Value& found = value(place);
  if (!found.lanes || found.lanes->images.grid != grid) {
    tensor(place);
    Lanes made = empty_lanes(images_kind(kReplay, *found.tensor), grid, border);
    const Tensor from = made.kind.last ? *found.tensor : torch::stable::contiguous(*found.tensor);
    to_lanes(images(from, const_cast<void*>(from.const_data_ptr()), made.kind.last), DType::float32, made.images,
             parallel);
    found.lanes = std::move(made);
  }
  return found.lanes->images;
}

LaneImages ReplayValues::add_lanes(const ImagesKind& kind, const LaneGrid& grid, int64_t border, size_t value) {
  values_[value] = {std::nullopt, empty_lanes(kind, grid, border)};
  return values_[value].lanes->images;
}

LaneImages ReplayValues::add_lanes_of(const ImagesKind& kind, Place place, size_t value) {
  Lanes taken = *std::exchange(this->value(place).lanes, std::nullopt);
  taken.kind = kind;
  values_[value] = {std::nullopt, std::move(taken)};
  return values_[value].lanes->images;
}

ReplayValues::Lanes ReplayValues::empty_lanes(const ImagesKind& kind, const LaneGrid& grid, int64_t border) {
  LaneImages images = lane_images(grid, kind.size[0], kind.size[1], border);
  const int64_t floats = images.floats(), step = 1;
  const auto found = std::find_if(free_.rbegin(), free_.rend(), [&](const Tensor& t) { return t.numel() >= floats; });
  Tensor memory;
  if (found != free_.rend()) {
    memory = std::move(*found);
    free_.erase(std::next(found).base());
  } else {
    memory = empty_strided({&floats, 1}, {&step, 1}, int32_t(ScalarType::Float));
  }
  images.data = static_cast<float*>(memory.mutable_data_ptr());
  return {images, std::move(memory), kind};
}

}  // namespace lcs::binding
