#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>

#include "keys.h"
#include "lcs/dtype.h"
#include "max_pool_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX512)
namespace lcs::avx512 {
namespace {
#include "lanes_avx512.inl"

// vmaxps gives its second operand where one is NaN, or both are equal.
inline Float largest_of(Float x, Float y) {
  return _mm512_mask_mov_ps(_mm512_max_ps(x, y), _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

// After the lanes it is written in.
#include "max_pool.inl"
}  // namespace

MaxPoolKernels max_pool_kernels() { return {nan, rows, columns}; }

}  // namespace lcs::avx512
LCS_TARGET_END
