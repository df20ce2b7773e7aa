#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

#include "keys.h"
#include "target.h"
#include "width_conv2d_kernels.h"

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
constexpr int kTileVectors = 2, kMaxVectors = 2, kTogetherAtMost = 1, kAddresses = 8;
constexpr int pixels_of(int vectors) { return vectors == 1 ? 8 : 6; }
inline Float term(Float x, Float weight, Float sum) { return fmadd(x, weight, sum); }
inline Float term_of_all(const float& x, Float weight, Float sum) { return fmadd(set1(x), weight, sum); }
template <class T>
inline void put(T* to, Float x) {
  store(to, rounded<T>(x));
}
// After the lanes they are written in.
#include "block_copy.inl"
#include "width_conv2d.inl"
}  // namespace

WidthConv2dKernels width_conv2d_kernels() { return table(); }

}  // namespace lcs::avx2
LCS_TARGET_END
