#include <immintrin.h>

#include <type_traits>

#include "cosine_squared_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX2)
namespace lcs::avx2 {
namespace {
#include "lanes_avx2.inl"
// After the lanes it is written in.
#include "cosine_squared.inl"
}  // namespace

CosineSquaredKernels cosine_squared_kernels() { return {sums, backward}; }

}  // namespace lcs::avx2
LCS_TARGET_END
