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
};

}  // namespace lcs::binding
