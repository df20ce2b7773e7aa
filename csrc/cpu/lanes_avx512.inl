// The vector vocabulary for AVX-512 F, BW, DQ, VL: 16 lanes, masks in mask registers.
constexpr int kLanes = 16;
using Float = __m512;
using Key = __m512i;
using Mask = __mmask16;

inline __m256i load_half(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Float load(const float* p) { return _mm512_loadu_ps(p); }
inline Float load(const BFloat16* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_half(p)), 16));
}
inline Float load(const Float16* p) { return _mm512_cvtph_ps(load_half(p)); }

// store() takes values that its type can hold, as rounded<T>() makes them.
inline void store(float* p, Float x) { _mm512_storeu_ps(p, x); }
inline void store(BFloat16* p, Float x) {
  const __m512i words = _mm512_srli_epi32(_mm512_castps_si512(x), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(words));
}
inline void store(Float16* p, Float x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

// Past the caches, to whole vectors' addresses; seen by other threads after stream_end().
inline void stream(float* p, Float x) { _mm512_stream_ps(p, x); }
template <class T>
inline void stream(T* p, Float x) {
  T packed[kLanes];
  store(packed, x);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed)));
}
inline void stream_end() { _mm_sfence(); }

template <class T>
inline Float rounded(Float x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const __m512i bits = _mm512_castps_si512(x),
                  odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i even = _mm512_and_si512(sum, _mm512_set1_epi32(int32_t(0xffff0000u)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(even, nan, _mm512_set1_epi32(0x7fc00000)));
  } else if constexpr (std::is_same_v<T, Float16>) {
    return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  } else {
    return x;
  }
}

inline Float set1(float x) { return _mm512_set1_ps(x); }
inline Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
inline Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
inline Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
inline Float fmadd(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
inline Float gather(const float* base, const uint16_t* index) {
  return _mm512_i32gather_ps(_mm512_cvtepu16_epi32(load_half(index)), base, 4);
}
inline float reduce(Float x) { return _mm512_reduce_add_ps(x); }
inline float reduce_least(Float x) { return _mm512_reduce_min_ps(x); }
inline float reduce_greatest(Float x) { return _mm512_reduce_max_ps(x); }
inline Float raised_to(Float x, Float floor) { return _mm512_max_ps(floor, x); }       // a NaN stays
inline Float lowered_to(Float x, Float ceiling) { return _mm512_min_ps(ceiling, x); }  // likewise
// Of kLanes vectors, each into a lane, as `reduce` and its like do: by halves.
template <Float (*op)(Float, Float)>
inline Float fold_halves(Float a, Float b) {
  return op(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
template <Float (*op)(Float, Float)>
inline Float fold_quarters(Float a, Float b) {
  return op(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
template <Float (*op)(Float, Float)>
inline Float fold_pairs(Float a, Float b) {
  return op(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}
template <Float (*op)(Float, Float)>
inline Float fold(Float a, Float b) {
  return op(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}
template <Float (*op)(Float, Float)>
inline Float fold_each(const Float* x) {
  Float four[4];
  for (int i = 0; i < 4; ++i)
    four[i] = fold_quarters<op>(fold_halves<op>(x[i], x[i + 4]), fold_halves<op>(x[i + 8], x[i + 12]));
  return fold<op>(fold_pairs<op>(four[0], four[1]), fold_pairs<op>(four[2], four[3]));
}
inline Float reduce_each(const Float* x) { return fold_each<add>(x); }
inline Float reduce_least_each(const Float* x) { return fold_each<lowered_to>(x); }
inline Float reduce_greatest_each(const Float* x) { return fold_each<raised_to>(x); }
inline Float nearest(Float x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Float floored(Float x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
inline Key set1_key(int32_t x) { return _mm512_set1_epi32(x); }
inline Key magnitude(Float x) {
  return _mm512_min_epi32(_mm512_and_si512(_mm512_castps_si512(x), set1_key(0x7fffffff)), set1_key(kNanKey));
}
inline Key load_keys(const int32_t* p) { return _mm512_loadu_si512(p); }
inline void store_keys(int32_t* p, Key x) { _mm512_storeu_si512(p, x); }
inline Mask at_least(Key a, Key b) { return _mm512_cmpge_epi32_mask(a, b); }
// Not a plain conversion: gcc 12 reloads 32 bits of a mask that it spilled as 16.
inline Mask within(Key a, Key low, Key width) { return _mm512_cmple_epu32_mask(_mm512_sub_epi32(a, low), width); }
inline uint32_t word_of(const Mask* m) { return uint32_t(m[1]) << 16 | uint32_t(m[0]); }
inline Mask from_bits(uint32_t bits) { return Mask(bits); }
inline Float where(Mask m, Float x) { return _mm512_maskz_mov_ps(m, x); }
inline Float choose(Mask m, Float x, Float y) { return _mm512_mask_blend_ps(m, y, x); }
inline Mask positive(Float x) { return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NLE_UQ); }  // or NaN

inline int append(uint16_t* list, uint32_t inside, int base) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int count = 0;
  for (int half = 0; half < 2; ++half) {
    const __mmask16 mask = __mmask16(inside >> (16 * half));
    const __m512i index = _mm512_maskz_compress_epi32(mask, _mm512_add_epi32(lane, set1_key(base + 16 * half)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(list + count), _mm512_cvtepi32_epi16(index));
    count += __builtin_popcount(mask);
  }
  return count;
}
