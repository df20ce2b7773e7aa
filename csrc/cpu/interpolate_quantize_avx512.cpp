#include <immintrin.h>

#include <algorithm>
#include <type_traits>

#include "interpolate_quantize_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX512)
namespace lcs::avx512 {
namespace {
#include "lanes_avx512.inl"
// After the lanes it is written in.
#include "blend.inl"
// And what blends two ends.
#include "interpolate_quantize.inl"
}  // namespace

InterpolateQuantizeKernels interpolate_quantize_kernels() { return {range, write, groups}; }

}  // namespace lcs::avx512
LCS_TARGET_END
