// What eight values round to.
class EightCodes {
 public:
  explicit EightCodes(const PackedCodes& code)
      : inverse_(_mm256_set1_ps(code.inverse)),
        lowest_(_mm256_set1_ps(float(code.lowest - code.zero))),
        highest_(_mm256_set1_ps(float(code.highest - code.zero))),
        zero_(_mm256_set1_epi32(code.zero)) {}

  // The first `n` of them.
  void put(__m256 value, int8_t* to, int64_t n) const {
    const __m256 scaled = _mm256_max_ps(_mm256_mul_ps(value, inverse_), lowest_);  // a NaN is lowest
    const __m256i codes = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_min_ps(scaled, highest_)), zero_);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
    const __m128i bytes = _mm_packs_epi16(words, words);
    if (n == 8) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(to), bytes);
    } else {
      int8_t all[16];
      _mm_storeu_si128(reinterpret_cast<__m128i*>(all), bytes);
      __builtin_memcpy(to, all, size_t(n));
    }
  }

 private:
  __m256 inverse_, lowest_, highest_;
  __m256i zero_;
};
