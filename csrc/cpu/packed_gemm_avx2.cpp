#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

#include "keys.h"
#include "packed_gemm_kernels.h"
#include "target.h"

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
// After the lanes it is written in.
#include "transpose_avx2.inl"

inline Key larger(Key a, Key b) { return _mm256_max_epi32(a, b); }

using Wide = __m256i;
constexpr int kMaxRows = 6;

inline Wide wide_zero() { return _mm256_setzero_si256(); }
inline Wide wide_load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void wide_store(void* p, Wide x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
inline Wide wide_broadcast(const char* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}
inline Wide wide_bytes(char x) { return _mm256_set1_epi8(x); }
inline Wide wide_sums(int32_t x) { return _mm256_set1_epi32(x); }
inline Wide shuffle_bytes(Wide x, __m128i places) {
  return _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(places));
}
inline Wide wide_words(int x) { return _mm256_set1_epi16(int16_t(x)); }
inline Wide add_words(Wide a, Wide b) { return _mm256_add_epi16(a, b); }
inline Wide pairs(Wide w, Wide x) { return _mm256_maddubs_epi16(w, x); }
inline Wide dot_pairs(Wide w, Wide x) { return _mm256_madd_epi16(w, x); }
inline Wide add(Wide a, Wide b) { return _mm256_add_epi32(a, b); }
inline void add_words_to(Wide& sum, Wide x) { LCS_ADD("vpaddw", _mm256_add_epi16, sum, x); }
inline void add_to(Wide& sum, Wide x) { LCS_ADD("vpaddd", _mm256_add_epi32, sum, x); }
#include "packed_gemm_words.inl"
// After the vocabulary it is written in.
#include "packed_codes_avx2.inl"
#include "packed_gemm.inl"
// After what it is written in.
#include "packed_gemm_pair_avx2.inl"
// After what it is written in.
#include "packed_gemm_winograd_4x4.inl"

// Words take longer than bytes directly, and the same here.
WinogradCosts winograd_costs(int bits) {
  return panel_of(bits) == Panel::words ? WinogradCosts{47, 700, 160} : WinogradCosts{71, 1000, 250};
}
}  // namespace

PackedGemmKernels packed_gemm_kernels() {
  PackedGemmKernels kernels = table();
  kernels.winograd_4x4 = {
      4, 2, kWinogradChannels, words::kPieces, words::weights, words::input, words::multiply, winograd_costs};
  return kernels;
}

}  // namespace lcs::avx2
LCS_TARGET_END
