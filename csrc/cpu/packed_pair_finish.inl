// What becomes of the sums of up to 64 channels with AVX-512 and VNNI.
constexpr int kPairVectors = 4;

// Of each 128 bits the first 32, of each the second 32, and so on; which undoes itself.
inline __m512i fours_transposed(__m512i x) {
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), x);
}

// Of vector v the 128 bits i become those v of vector i.
inline void lanes_transposed(__m512 (&x)[kPairVectors]) {
  const __m512 a = _mm512_shuffle_f32x4(x[0], x[1], 0x88), b = _mm512_shuffle_f32x4(x[0], x[1], 0xdd),
               c = _mm512_shuffle_f32x4(x[2], x[3], 0x88), d = _mm512_shuffle_f32x4(x[2], x[3], 0xdd);
  x[0] = _mm512_shuffle_f32x4(a, c, 0x88), x[1] = _mm512_shuffle_f32x4(b, d, 0x88);
  x[2] = _mm512_shuffle_f32x4(a, c, 0xdd), x[3] = _mm512_shuffle_f32x4(b, d, 0xdd);
}

// What becomes of sums: see PackedPairOutput, of which it keeps what all rows share ready in vectors.
class PairFinish {
 public:
  explicit PairFinish(const PackedPairOutput& output)
      : o_(output),
        all_(o_.channels == kPairRows ? ~__mmask64{0} : (__mmask64{1} << o_.channels) - 1),
        floor_(_mm512_set1_ps(o_.relu ? 0.0f : -__builtin_inff())),
        inverse_(_mm512_set1_ps(o_.grid.inverse)),
        highest_(_mm512_set1_ps(float(o_.grid.highest - o_.grid.zero))),
        shift_(_mm512_set1_epi32(o_.shift)),
        lowest_(_mm512_set1_epi16(int16_t(o_.grid.lowest - o_.grid.zero))),
        zero_(_mm512_set1_epi16(int16_t(o_.grid.zero))) {
    for (int v = 0; v < kPairVectors; ++v) {
      const __m512i center = _mm512_loadu_si512(o_.center + 16 * v);
      centers_[v] = _mm512_mask_blend_epi16(0xaaaaaaaa, center, _mm512_slli_epi32(center, 16 + kLowBits));
    }
  }

  // Of rows of x from `first` on, the first vectors of channels. A call would have the sums in memory, all the time
  // that they are added up.
  template <int kVectors, int kRows>
  [[gnu::always_inline]] inline void rows(int64_t first, const __m512i (*sum)[kVectors]) const {
    const int64_t* const place = o_.place;
    const int32_t* const sums = o_.sums;
    const float* const row_scale = o_.row_scale;
    const bool few = has_few_terms();
    const Results results = this->results();
    LCS_UNROLL
    for (int m = 0; m < kRows; ++m) {
      const int64_t row = first + m, at = place ? place[row] : row;
      __m512i whole[kVectors];
      this->whole(few, sums[row], sum[m], whole);
      put<false>(results, at, _mm512_set1_ps(row_scale[row]), whole);
    }
  }

  // Copies, as what is stored might be part of this, for all that compilers know.
  struct Results {
    const float *scale, *bias, *residual;
    int64_t residual_stride, stride;
    float* y;
    int8_t* codes;
    __mmask64 all;
  };
  Results results() const {
    return {o_.scale, o_.bias, o_.residual, o_.residual_stride, o_.stride, o_.y, o_.codes, all_};
  }

  // What becomes of a row's `whole`, at row `at` of y. kByFours: four channels of every 16 after each other lie in a
  // vector, and so do scales and biases.
  template <bool kByFours, int kVectors>
  [[gnu::always_inline]] inline void put(const Results& r, int64_t at, __m512 row_scale,
                                         const __m512i (&whole)[kVectors]) const {
    __mmask16 mask[kVectors];
    LCS_UNROLL
    for (int v = 0; v < kVectors; ++v) mask[v] = __mmask16(r.all >> (16 * v));
    __m512 value[kVectors];
    LCS_UNROLL
    for (int v = 0; v < kVectors; ++v)
      value[v] =
          _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(whole[v]), _mm512_loadu_ps(r.scale + 16 * v)), row_scale);
    if (r.bias) LCS_UNROLL
    for (int v = 0; v < kVectors; ++v) value[v] = _mm512_add_ps(value[v], _mm512_loadu_ps(r.bias + 16 * v));
    const bool by_fours = kByFours && !r.residual && !r.y;
    if constexpr (kByFours)
      if (!by_fours) lanes_transposed(value);
    if (r.residual) LCS_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const float* const from = r.residual + at * r.residual_stride + 16 * v;
      value[v] = _mm512_add_ps(value[v], _mm512_maskz_loadu_ps(mask[v], from));
    }
    LCS_UNROLL
    for (int v = 0; v < kVectors; ++v) value[v] = _mm512_max_ps(floor_, value[v]);  // a NaN stays
    if (r.codes) {
      const __m512i codes = codes_of<kVectors>(value);
      _mm512_mask_storeu_epi8(r.codes + at * r.stride, r.all, by_fours ? codes : fours_transposed(codes));
    }
    if (r.y) LCS_UNROLL
    for (int v = 0; v < kVectors; ++v) _mm512_mask_storeu_ps(r.y + at * r.stride + 16 * v, mask[v], value[v]);
  }

  // sum * 2^shift + center * sums; `few`: whether has_few_terms().
  template <int kVectors>
  [[gnu::always_inline]] inline void whole(bool few, int32_t sums, const __m512i* sum, __m512i (&to)[kVectors]) const {
    LCS_UNROLL
    for (int v = 0; v < kVectors; ++v) to[v] = _mm512_sllv_epi32(sum[v], shift_);
    few ? add_few(sums, to) : add_many(sums, to);
  }
  bool has_few_terms() const { return o_.terms <= kFewTerms; }
  const int32_t* sums() const { return o_.sums; }

  // Of outputs of tiles, those that have a place; all of a row is one piece.
  template <int kRows>
  [[gnu::always_inline]] inline void outputs(int64_t first, int, const __m512i (*sum)[kPairVectors]) const {
    const int64_t* const place = o_.place + first;
    int64_t signs = 0;
    for (int m = 0; m < kRows; ++m) signs |= place[m];
    if (signs >= 0) return rows<kPairVectors, kRows>(first, sum);
    for (int m = 0; m < kRows; ++m)
      if (place[m] >= 0) rows<kPairVectors, 1>(first + m, sum + m);
  }

 private:
  // Words of 16 bits hold a center, of 10 bits, times 2^kLowBits; and what is left of a sum of kFewTerms values or
  // fewer without its kLowBits lowest bits.
  static constexpr int kLowBits = 6;
  static constexpr int64_t kFewTerms = (int64_t{1} << (15 + kLowBits)) / 256;

  // Centers times a row's sum.
  template <int kVectors>
  [[gnu::always_inline]] inline void add_few(int32_t sum, __m512i (&to)[kVectors]) const {
    const uint32_t low = uint32_t(sum) & ((1u << kLowBits) - 1), high = uint32_t(sum >> kLowBits) << 16;
    const __m512i both = _mm512_set1_epi32(int32_t(high | low));
    LCS_UNROLL
    for (int v = 0; v < kVectors; ++v) to[v] = _mm512_dpwssd_epi32(to[v], centers_[v], both);
  }
  template <int kVectors>
  [[gnu::always_inline]] inline void add_many(int32_t sum, __m512i (&to)[kVectors]) const {
    const __m512i sums = _mm512_set1_epi32(sum);
    LCS_UNROLL
    for (int v = 0; v < kVectors; ++v)
      to[v] = _mm512_add_epi32(to[v], _mm512_mullo_epi32(_mm512_loadu_si512(o_.center + 16 * v), sums));
  }

  // Four of the vector v behind four of those before it, of every 128 bits.
  template <int kVectors>
  [[gnu::always_inline]] inline __m512i codes_of(const __m512 (&value)[kVectors]) const {
    __m512i nearest[kPairVectors]{}, words[2];
    LCS_UNROLL
    for (int v = 0; v < kVectors; ++v)  // a NaN becomes the least integer
      nearest[v] = _mm512_cvtps_epi32(_mm512_min_ps(highest_, _mm512_mul_ps(value[v], inverse_)));
    LCS_UNROLL
    for (int i = 0; i < 2; ++i) {
      const __m512i near = _mm512_packs_epi32(nearest[2 * i], nearest[2 * i + 1]);
      words[i] = _mm512_add_epi16(_mm512_max_epi16(near, lowest_), zero_);
    }
    return _mm512_packs_epi16(words[0], words[1]);
  }

  const PackedPairOutput o_;
  const __mmask64 all_;
  const __m512 floor_, inverse_, highest_;
  const __m512i shift_, lowest_, zero_;
  __m512i centers_[kPairVectors];
};
