#include <algorithm>
#include <bit>
#include <type_traits>

#include "line_norm_kernels.h"

namespace lcs::scalar {
namespace {
#include "lanes_scalar.inl"
// After the lanes they are written in.
#include "blend.inl"
#include "line_norm.inl"
#include "line_norm_apply.inl"
}  // namespace

LineNormKernels line_norm_kernels() {
  return {blend_vector, moments, column_moments, planes, columns, sums, column_sums, grad_planes, grad_columns};
}

}  // namespace lcs::scalar
