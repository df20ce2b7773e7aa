#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

#include "keys.h"
#include "packed_gemm_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_VNNI)
namespace lcs::vnni {
namespace {
namespace single {
#include "lanes_scalar.inl"
}
namespace eight {
#include "lanes_avx2.inl"
}
#include "lanes_avx512.inl"

inline Key larger(Key a, Key b) { return _mm512_max_epi32(a, b); }

using Wide = __m512i;
constexpr int kMaxRows = 12;

inline Wide wide_zero() { return _mm512_setzero_si512(); }
inline Wide wide_load(const void* p) { return _mm512_loadu_si512(p); }
inline void wide_store(void* p, Wide x) { _mm512_storeu_si512(p, x); }
inline Wide wide_broadcast(const char* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}
inline Wide add_words(Wide a, Wide b) { return _mm512_add_epi16(a, b); }
inline Wide pairs(Wide w, Wide x) { return _mm512_maddubs_epi16(w, x); }
inline Wide add_words_of(Wide sum, Wide words) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(words, _mm512_set1_epi16(1)));
}
inline Wide dot_words(Wide sum, Wide w, Wide x) { return _mm512_add_epi32(sum, _mm512_madd_epi16(w, x)); }
inline Wide dot_bytes(Wide sum, Wide w, Wide x) { return _mm512_dpbusd_epi32(sum, w, x); }
inline Wide sums_load(const int32_t* p) { return wide_load(p); }
inline void sums_store(int32_t* p, Wide x) { wide_store(p, x); }
inline Float sums_load(const float* p) { return load(p); }
inline void sums_store(float* p, Float x) { store(p, x); }

// Four products are added to 32 bits at once, at every width.
Panel panel_of(int) { return Panel::bytes; }
constexpr int64_t chain_of(int) { return 0; }

// After the vocabulary it is written in.
#include "packed_gemm.inl"
}  // namespace

PackedGemmKernels packed_gemm_kernels() { return table(); }

}  // namespace lcs::vnni
LCS_TARGET_END
