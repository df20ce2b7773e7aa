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
constexpr int kMaxVectors = 2, kTogetherAtMost = 4;
constexpr int pixels_of(int) { return 14; }
// Of pairs: the second products first, then the first ones, each rounded, denormals as zeros.
inline Float term(Float x, Float weight, Float sum) { return _mm512_dpbf16_ps(sum, __m512bh(x), __m512bh(weight)); }
inline Float term_of_all(const float& x, Float weight, Float sum) {  // in a form that gcc has no pattern for
  asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(weight), "m"(x));
  return sum;
}
// After the lanes they are written in.
#include "block_copy.inl"
#include "width_conv2d.inl"
}  // namespace

WidthConv2dKernels width_conv2d_kernels() { return table(); }

}  // namespace lcs::bf16
LCS_TARGET_END
