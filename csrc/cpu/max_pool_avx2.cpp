#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>

#include "keys.h"
#include "lcs/dtype.h"
#include "max_pool_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX2)
namespace lcs::avx2 {
namespace {
#include "lanes_avx2.inl"

// vmaxps gives its second operand where one is NaN, or both are equal.
inline Float largest_of(Float x, Float y) {
  return _mm256_blendv_ps(_mm256_max_ps(x, y), x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

// After the lanes it is written in.
#include "max_pool.inl"
}  // namespace

MaxPoolKernels max_pool_kernels() { return {nan, rows, columns}; }

}  // namespace lcs::avx2
LCS_TARGET_END
