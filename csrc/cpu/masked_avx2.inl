// Those of 8 elements whose bits are set; zeros in place of the others, which are not read.
inline __m256i lanes_of(uint8_t bits) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits), bit), bit);
}
inline __m256 load_some(const float* p, uint8_t bits) { return _mm256_maskload_ps(p, lanes_of(bits)); }
inline __m256 load_some(const BFloat16* p, uint8_t bits) {
  BFloat16 all[8] = {};
  for (int i = 0; i < 8; ++i)
    if (bits >> i & 1) all[i] = p[i];
  return eight::load(all);
}

// The first of 8 elements, whose bits are set.
inline void store_some(float* p, __m256 x, uint8_t bits) { store_first(p, x, std::popcount(bits)); }
inline void store_some(BFloat16* p, __m256 x, uint8_t bits) { store_first(p, x, std::popcount(bits)); }

// Lane l is what `lanes` says of x, or 0 where that is -1.
inline __m256i load_map(const int32_t* lanes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes)); }
inline __m256 moved(__m256 x, __m256i lanes) {
  return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(lanes, 31)), _mm256_permutevar8x32_ps(x, lanes));
}
