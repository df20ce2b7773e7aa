#pragma once
#include <cstdint>
#include <span>

#include "lcs/dtype.h"
#include "lcs/parallel.h"

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

CosineSums cosine_sums(std::span<const CosineSquaredLayer> layers, DType dtype, const Parallel& parallel);

// dot^2 / (norm0 * norm1), which is the square of the cosine between the ends; 0 where an end is 0.
double cosine_squared(const CosineSums& sums);

// grad times the gradient of cosine_squared, to both ends of every layer.
void cosine_squared_backward(std::span<const CosineSquaredLayer> layers, const CosineSums& sums, double grad,
                             DType dtype, const Parallel& parallel);

}  // namespace lcs
