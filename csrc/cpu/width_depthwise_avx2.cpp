#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

#include "keys.h"
#include "target.h"
#include "width_depthwise_kernels.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX2)
namespace lcs::avx2 {
namespace {
namespace single {
#include "lanes_scalar.inl"
}
namespace eight {
#include "lanes_avx2.inl"
}
using namespace eight;
#include "transpose_avx2.inl"
// After the lanes they are written in.
#include "masked_avx2.inl"
// After what it loads and stores with.
#include "lane_copy.inl"
namespace channels = eight;
#include "width_depthwise_lanes.inl"

// No more than the 15 elements that are there is read.
template <class T>
inline Float evens(const T* p) {
  const __m256 pairs = _mm256_shuffle_ps(load(p), load(p + 7), _MM_SHUFFLE(3, 1, 2, 0));  // 0, 2, 8, 10, 4, 6, 12, 14
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(pairs), _MM_SHUFFLE(3, 1, 2, 0)));
}

// After the lanes it is written in.
#include "width_depthwise.inl"
}  // namespace

WidthDepthwiseKernels width_depthwise_kernels() { return table(); }

}  // namespace lcs::avx2
LCS_TARGET_END
