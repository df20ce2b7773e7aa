#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

#include "keys.h"
#include "target.h"
#include "width_conv2d_kernels.h"

LCS_TARGET_BEGIN(LCS_TARGET_BF16)
namespace lcs::bf16 {
namespace {
namespace single {
#include "lanes_scalar.inl"
}
namespace eight {
#include "lanes_avx2.inl"
}
#include "lanes_avx512.inl"
#include "transpose_avx2.inl"
constexpr int kTileVectors = 2, kMaxVectors = 3, kTogetherAtMost = 3, kAddresses = 0;
constexpr int pixels_of(int vectors) { return vectors == 3 ? 9 : 14; }
// Of pairs: the second products first, then the first ones, each rounded, denormals as zeros.
inline Float term(Float x, Float weight, Float sum) { return _mm512_dpbf16_ps(sum, __m512bh(x), __m512bh(weight)); }
inline Float term_of_all(const float& x, Float weight, Float sum) {  // in a form that gcc has no pattern for
  asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(weight), "m"(x));
  return sum;
}
inline void put(float* to, Float x) { store(to, x); }
inline void put(BFloat16* to, Float x) {  // denormals as zeros, as the terms
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), __m256i(_mm512_cvtneps_pbh(x)));
}
// After the lanes they are written in.
#include "block_copy.inl"
#include "width_conv2d.inl"
}  // namespace

WidthConv2dKernels width_conv2d_kernels() { return table(); }

}  // namespace lcs::bf16
LCS_TARGET_END
