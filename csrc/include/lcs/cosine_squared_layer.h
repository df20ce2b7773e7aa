#pragma once
#include <cstdint>

namespace lcs {

// One layer's two ends, n weights each. The gradients are written by the backward alone.
struct CosineSquaredLayer {
  const void *w0, *w1;
  void *grad_w0, *grad_w1;
  int64_t n;
};

// <w0, w1>, <w0, w0> and <w1, w1> over all layers. The order of the sums depends on the sizes of the layers alone.
struct CosineSums {
  double dot, norm0, norm1;
};

}  // namespace lcs
