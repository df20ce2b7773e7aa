#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>

#include "keys.h"
#include "lcs/dtype.h"
#include "target.h"
#include "width_winograd6_kernels.h"

LCS_TARGET_BEGIN(LCS_TARGET_BF16)
namespace lcs::bf16 {
namespace {
#include "lanes_avx512.inl"
// Of pairs: the first channel of each is the lower half of its float.
inline void each_tap(const void* from, int64_t tap, int64_t channel, int, Float* to) {
  const BFloat16* at = static_cast<const BFloat16*>(from) + channel / 2 * 32;
  for (int i = 0; i < 9; ++i, at += tap) {
    const __m512i pairs = _mm512_loadu_si512(at);
    to[i] = _mm512_castsi512_ps(channel % 2 ? _mm512_and_si512(pairs, _mm512_set1_epi32(int32_t(0xffff0000u)))
                                            : _mm512_slli_epi32(pairs, 16));
  }
}
inline void put(float* to, Float x) { store(to, x); }
inline void put(BFloat16* to, Float x) {  // denormals as zeros, as this instruction set's products
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), __m256i(_mm512_cvtneps_pbh(x)));
}
// After the lanes they are written in.
#include "width_winograd6.inl"
}  // namespace

WidthWinograd6Kernels width_winograd6_kernels() { return {weights, input, output}; }

}  // namespace lcs::bf16
LCS_TARGET_END
