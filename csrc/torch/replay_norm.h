#pragma once
#include <vector>

#include "replay_places.h"

namespace lcs::binding {

// A norm's vectors of each channel, checked: (x - mean) * scale + shift of given statistics, else weight and bias.
struct ReplayNorm {
  std::vector<float> vectors;
  const float *mean = nullptr, *scale, *shift;
  NormPlaces places;
  ImagesKind y;

  // For x of such a kind.
  ReplayNorm(const char* op, const NormPlaces& places, const ReplayValues& values, const ImagesKind& x);
  // The same of what the tensors hold now.
  ReplayNorm(const ReplayNorm& before, const ReplayValues& values)
      : ReplayNorm(before.op_, before.places, values, before.y) {}
  ReplayNorm(ReplayNorm&&) = default;

 private:
  const char* op_;
};

}  // namespace lcs::binding
