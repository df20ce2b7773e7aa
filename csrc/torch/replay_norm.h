#pragma once
#include <vector>

#include "replay_code.h"
#include "replay_values.h"
#include "sparse_conv2d_binding.h"

namespace lcs::binding {

// A norm of given statistics, checked: (x - mean) * scale + shift of each channel.
struct ReplayNorm {
  std::vector<float> vectors;
  const float *mean, *scale, *shift;
  bool relu;
  ImagesKind y;

  // For x of such a kind.
  ReplayNorm(const LineNormStep& step, ReplayValues& values, const ImagesKind& x);
};

}  // namespace lcs::binding
