#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>

#include "keys.h"
#include "lcs/dtype.h"
#include "target.h"
#include "width_winograd6_kernels.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX2)
namespace lcs::avx2 {
namespace {
#include "lanes_avx2.inl"
inline void each_tap(const void* from, int64_t tap, int64_t channel, int first, Float* to) {
  const float* const at = static_cast<const float*>(from) + channel * 16 + first;
  for (int i = 0; i < 9; ++i) to[i] = load(at + i * tap);
}
template <class T>
inline void put(T* to, Float x) {
  store(to, rounded<T>(x));
}
// After the lanes they are written in.
#include "width_winograd6.inl"
}  // namespace

WidthWinograd6Kernels width_winograd6_kernels() { return {weights, input, output}; }

}  // namespace lcs::avx2
LCS_TARGET_END
