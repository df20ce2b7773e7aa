#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

#include "keys.h"
#include "target.h"
#include "width_depthwise_kernels.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX512)
namespace lcs::avx512 {
namespace {
namespace single {
#include "lanes_scalar.inl"
}
namespace eight {
#include "lanes_avx2.inl"
}
namespace whole {
#include "lanes_avx512.inl"
}
using namespace whole;
#include "transpose_avx2.inl"
// After the lanes they are written in.
#include "masked_avx512.inl"
// After what it loads and stores with.
#include "lane_copy.inl"
namespace channels = eight;
#include "width_depthwise_lanes.inl"

// No more than the 31 elements that are there is read.
template <class T>
inline Float evens(const T* p) {
  const __m512i index = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31);
  return _mm512_permutex2var_ps(load(p), index, load(p + 15));
}

// After the lanes it is written in.
#include "width_depthwise.inl"
}  // namespace

WidthDepthwiseKernels width_depthwise_kernels() { return table(); }

}  // namespace lcs::avx512
LCS_TARGET_END
