#include <immintrin.h>

#include <type_traits>

#include "cosine_squared_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX512)
namespace lcs::avx512 {
namespace {
#include "lanes_avx512.inl"
// After the lanes it is written in.
#include "cosine_squared.inl"
}  // namespace

CosineSquaredKernels cosine_squared_kernels() { return {sums, backward}; }

}  // namespace lcs::avx512
LCS_TARGET_END
