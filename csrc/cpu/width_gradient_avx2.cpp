#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

#include "keys.h"
#include "lcs/dtype.h"
#include "target.h"
#include "width_gradient_kernels.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX2)
namespace lcs::avx2 {
namespace {
#include "lanes_avx2.inl"
constexpr int kOutputs = 6;
// After the lanes they are written in.
#include "width_gradient.inl"
}  // namespace

WidthGradientKernels width_gradient_kernels() { return table(); }

}  // namespace lcs::avx2
LCS_TARGET_END
