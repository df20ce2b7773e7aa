#include <immintrin.h>

#include <type_traits>

#include "line_norm_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX2)
namespace lcs::avx2 {
namespace {
#include "lanes_avx2.inl"
// After the lanes they are written in.
#include "blend.inl"
#include "line_norm.inl"
#include "line_norm_apply.inl"
}  // namespace

LineNormKernels line_norm_kernels() {
  return {blend_vector, moments, column_moments, planes, columns, sums, column_sums, grad_planes, grad_columns};
}

}  // namespace lcs::avx2
LCS_TARGET_END
