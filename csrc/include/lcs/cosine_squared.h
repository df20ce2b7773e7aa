#pragma once
#include <cstdint>
#include <span>

#include "lcs/cosine_squared_layer.h"
#include "lcs/dtype.h"
#include "lcs/parallel.h"

namespace lcs {

CosineSums cosine_sums(std::span<const CosineSquaredLayer> layers, DType dtype, const Parallel& parallel);

// dot^2 / (norm0 * norm1), which is the square of the cosine between the ends; 0 where an end is 0.
double cosine_squared(const CosineSums& sums);

// grad times the gradient of cosine_squared, to both ends of every layer.
void cosine_squared_backward(std::span<const CosineSquaredLayer> layers, const CosineSums& sums, double grad,
                             DType dtype, const Parallel& parallel);

}  // namespace lcs
