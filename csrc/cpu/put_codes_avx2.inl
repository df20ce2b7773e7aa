// What eight values round to, of which the first `channels` are kept.
inline void put_codes(__m256 value, const PackedCodes& code, int8_t* to, int channels) {
  const __m256 lowest = _mm256_set1_ps(float(code.lowest - code.zero)),
               highest = _mm256_set1_ps(float(code.highest - code.zero));
  const __m256 scaled = _mm256_max_ps(_mm256_mul_ps(value, _mm256_set1_ps(code.inverse)), lowest);  // a NaN is lowest
  const __m256i codes =
      _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_min_ps(scaled, highest)), _mm256_set1_epi32(code.zero));
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
  int8_t bytes[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), _mm_packs_epi16(words, words));
  __builtin_memcpy(to, bytes, channels == 8 ? 8 : size_t(channels));
}
