// Those of 8 elements whose bits are set; zeros in place of the others, which are not read.
inline __m256 load_some(const float* p, uint8_t bits) { return _mm256_maskz_loadu_ps(bits, p); }
inline __m256 load_some(const BFloat16* p, uint8_t bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_maskz_loadu_epi16(bits, p)), 16));
}

// Likewise; the others are not written.
inline void store_some(float* p, __m256 x, uint8_t bits) { _mm256_mask_storeu_ps(p, bits, x); }
inline void store_some(BFloat16* p, __m256 x, uint8_t bits) {
  BFloat16 all[8];
  eight::store(all, eight::rounded<BFloat16>(x));
  _mm_mask_storeu_epi16(p, bits, _mm_loadu_si128(reinterpret_cast<const __m128i*>(all)));
}

// Lane l is what `lanes` says of x, or 0 where that is -1.
inline __m512i load_map(const int32_t* lanes) { return _mm512_loadu_si512(lanes); }
inline __m512 moved(__m512 x, __m512i lanes) {
  return _mm512_maskz_permutexvar_ps(_mm512_cmpge_epi32_mask(lanes, _mm512_setzero_si512()), lanes, x);
}
