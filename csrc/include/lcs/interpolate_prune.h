#pragma once
#include <cstdint>
#include <span>

#include "lcs/dtype.h"
#include "lcs/interpolate_prune_layer.h"
#include "lcs/parallel.h"

namespace lcs {

// w = fl(fl(1 - alpha) * w0) + fl(alpha * w1) in float32, rounded to `out`; the `keep` largest by magnitude stay, the
// rest become 0. Equal magnitudes keep the higher index, -0 ranks as 0, every NaN as one value above infinity.
struct InterpolatePruneArgs {
  std::span<const InterpolatePruneLayer> layers;
  std::span<const int64_t> keep;  // one per layer, or a single one over all layers in their order; clamped to [0, n]
  float alpha;
  DType in, out;  // of w0 and w1; of w
};

void interpolate_prune(const InterpolatePruneArgs& args, const Parallel& parallel);

// grad_w0 = fl(1 - alpha) * grad and grad_w1 = alpha * grad where kept, 0 elsewhere (a point: grad_w0 = grad where
// kept).
struct InterpolatePruneBackwardArgs {
  std::span<const InterpolatePruneBackwardLayer> layers;
  float alpha;
  DType in, out;  // of w0, w1 and their gradients; of grad
};

// Returns the gradient to alpha, the sum over kept weights of grad * (w1 - w0); 0 where it is not wanted. The order of
// the sum depends on the sizes of the layers alone.
double interpolate_prune_backward(const InterpolatePruneBackwardArgs& args, const Parallel& parallel);

}  // namespace lcs
