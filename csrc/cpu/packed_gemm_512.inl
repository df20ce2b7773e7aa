// The vocabulary of packed_gemm.inl in vectors of 512 bits but for `add_dot_bytes` and `add_dot_words`,
// after lanes_avx512.inl.
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
inline Wide wide_bytes(char x) { return _mm512_set1_epi8(x); }
inline Wide wide_sums(int32_t x) { return _mm512_set1_epi32(x); }
inline Wide shuffle_bytes(Wide x, __m128i places) { return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(places)); }
inline Wide wide_words(int x) { return _mm512_set1_epi16(int16_t(x)); }
inline Wide add_words(Wide a, Wide b) { return _mm512_add_epi16(a, b); }
inline Wide pairs(Wide w, Wide x) { return _mm512_maddubs_epi16(w, x); }
inline Wide dot_pairs(Wide w, Wide x) { return _mm512_madd_epi16(w, x); }
inline Wide add(Wide a, Wide b) { return _mm512_add_epi32(a, b); }
inline void add_words_to(Wide& sum, Wide x) { LCS_ADD("vpaddw", _mm512_add_epi16, sum, x); }
inline void add_to(Wide& sum, Wide x) { LCS_ADD("vpaddd", _mm512_add_epi32, sum, x); }
