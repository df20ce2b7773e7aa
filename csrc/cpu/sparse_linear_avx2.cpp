#include <immintrin.h>

#include <type_traits>

#include "keys.h"
#include "lcs/dtype.h"
#include "sparse_linear_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX2)
namespace lcs::avx2 {
namespace {
#include "lanes_avx2.inl"
// After the lanes it is written in.
#include "sparse_linear.inl"
}  // namespace

SparseLinearKernels sparse_linear_kernels() { return {dots}; }

}  // namespace lcs::avx2
LCS_TARGET_END
