#include <immintrin.h>

#include <algorithm>
#include <type_traits>

#include "interpolate_quantize_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX2)
namespace lcs::avx2 {
namespace {
#include "lanes_avx2.inl"
// After the lanes it is written in.
#include "blend.inl"
// And what blends two ends.
#include "interpolate_quantize.inl"
}  // namespace

InterpolateQuantizeKernels interpolate_quantize_kernels() { return {range, write, groups}; }

}  // namespace lcs::avx2
LCS_TARGET_END
