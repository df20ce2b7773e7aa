#include <immintrin.h>

#include <algorithm>

#include "packed_conv2d_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX512)
namespace lcs::avx512 {
namespace {

constexpr int64_t kMostBytes = 1984;  // of a position, an eighth of which sums to 16 bits

// Sixteen partial sums of n bytes, a multiple of 64.
inline __m512i sixteenths(const int8_t* x, int64_t n) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i words = _mm512_setzero_si512();
  for (int64_t c = 0; c < n; c += 64)
    words = _mm512_add_epi16(words, _mm512_maddubs_epi16(ones, _mm512_loadu_si512(x + c)));
  return _mm512_madd_epi16(words, _mm512_set1_epi16(1));
}

// Of every 128 bits the sums of neighbours in a, and behind them of those in b.
inline __m512i halved(__m512i a, __m512i b) {
  return _mm512_madd_epi16(_mm512_packs_epi32(a, b), _mm512_set1_epi16(1));
}

// The sums of neighbouring 128 bits of a, and behind them of those of b.
inline __m512i lanes_halved(__m512i a, __m512i b) {
  return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

// Of sixteen positions at once.
void sums(const int8_t* x, int64_t stride, int64_t n, int64_t count, int32_t* to) {
  if (n % 64 != 0 || n > kMostBytes) return avx2::packed_conv2d_kernels().sums(x, stride, n, count, to);
  for (int64_t i = 0; i < count; i += 16) {
    __m512i four[4];
    LCS_UNROLL
    for (int64_t j = 0; j < 4; ++j) {
      const auto of = [&](int64_t k) { return sixteenths(x + std::min(i + 4 * j + k, count - 1) * stride, n); };
      four[j] = halved(halved(of(0), of(1)), halved(of(2), of(3)));
    }
    const __m512i all = lanes_halved(lanes_halved(four[0], four[1]), lanes_halved(four[2], four[3]));
    const __mmask16 there = count - i >= 16 ? 0xffff : __mmask16((1u << (count - i)) - 1);
    _mm512_mask_storeu_epi32(to + i, there, all);
  }
}

}  // namespace

PackedConv2dKernels packed_conv2d_kernels() {
  PackedConv2dKernels kernels = avx2::packed_conv2d_kernels();
  kernels.sums = sums;
  return kernels;
}

}  // namespace lcs::avx512
LCS_TARGET_END
