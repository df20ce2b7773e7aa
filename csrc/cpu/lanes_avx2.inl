// The vector vocabulary for AVX2 and F16C: 8 lanes, masks as full-width vectors.
constexpr int kLanes = 8;
using Float = __m256;
using Key = __m256i;
using Mask = __m256;

inline __m128i load_half(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline Float load(const float* p) { return _mm256_loadu_ps(p); }
inline Float load(const BFloat16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_half(p)), 16));
}
inline Float load(const Float16* p) { return _mm256_cvtph_ps(load_half(p)); }

// store() takes values that its type can hold, as rounded<T>() makes them.
inline void store(float* p, Float x) { _mm256_storeu_ps(p, x); }
inline void store(BFloat16* p, Float x) {
  const __m256i words = _mm256_srli_epi32(_mm256_castps_si256(x), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
inline void store(Float16* p, Float x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

// Past the caches, to whole vectors' addresses; seen by other threads after stream_end().
inline void stream(float* p, Float x) { _mm256_stream_ps(p, x); }
template <class T>
inline void stream(T* p, Float x) {
  T packed[kLanes];
  store(packed, x);
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), load_half(packed));
}
inline void stream_end() { _mm_sfence(); }

template <class T>
inline Float rounded(Float x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const __m256i bits = _mm256_castps_si256(x),
                  odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i even = _mm256_and_si256(sum, _mm256_set1_epi32(int32_t(0xffff0000u)));
    const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    return _mm256_blendv_ps(_mm256_castsi256_ps(even), nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  } else if constexpr (std::is_same_v<T, Float16>) {
    return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  } else {
    return x;
  }
}

inline Float set1(float x) { return _mm256_set1_ps(x); }
inline Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
inline Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
inline Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
inline Float fmadd(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
// Eight loads, as many processors without AVX-512 run vgatherdps as microcode.
inline __m128 gather_four(const float* base, const uint16_t* index) {
  __m128 x = _mm_load_ss(base + index[0]);
  x = _mm_insert_ps(x, _mm_load_ss(base + index[1]), 0x10);
  x = _mm_insert_ps(x, _mm_load_ss(base + index[2]), 0x20);
  return _mm_insert_ps(x, _mm_load_ss(base + index[3]), 0x30);
}
inline Float gather(const float* base, const uint16_t* index) {
  return _mm256_set_m128(gather_four(base, index + 4), gather_four(base, index));
}
inline float reduce(Float x) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
inline float reduce_least(Float x) {
  __m128 least = _mm_min_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  least = _mm_min_ps(least, _mm_movehl_ps(least, least));
  return _mm_cvtss_f32(_mm_min_ss(least, _mm_movehdup_ps(least)));
}
inline float reduce_greatest(Float x) {
  __m128 greatest = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  greatest = _mm_max_ps(greatest, _mm_movehl_ps(greatest, greatest));
  return _mm_cvtss_f32(_mm_max_ss(greatest, _mm_movehdup_ps(greatest)));
}
inline Float raised_to(Float x, Float floor) { return _mm256_max_ps(floor, x); }       // a NaN stays
inline Float lowered_to(Float x, Float ceiling) { return _mm256_min_ps(ceiling, x); }  // likewise
// Of kLanes vectors, each into a lane, as `reduce` and its like do: by halves.
template <Float (*op)(Float, Float)>
inline Float fold_halves(Float a, Float b) {
  return op(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
template <Float (*op)(Float, Float)>
inline Float fold_pairs(Float a, Float b) {
  return op(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
}
template <Float (*op)(Float, Float)>
inline Float fold(Float a, Float b) {
  return op(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}
template <Float (*op)(Float, Float)>
inline Float fold_each(const Float* x) {
  Float four[4];
  for (int i = 0; i < 4; ++i) four[i] = fold_halves<op>(x[i], x[i + 4]);
  return fold<op>(fold_pairs<op>(four[0], four[1]), fold_pairs<op>(four[2], four[3]));
}
inline Float reduce_each(const Float* x) { return fold_each<add>(x); }
inline Float reduce_least_each(const Float* x) { return fold_each<lowered_to>(x); }
inline Float reduce_greatest_each(const Float* x) { return fold_each<raised_to>(x); }
inline Float nearest(Float x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Float floored(Float x) { return _mm256_floor_ps(x); }
inline Key set1_key(int32_t x) { return _mm256_set1_epi32(x); }
inline Key magnitude(Float x) {
  return _mm256_min_epi32(_mm256_and_si256(_mm256_castps_si256(x), set1_key(0x7fffffff)), set1_key(kNanKey));
}
inline Key load_keys(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_keys(int32_t* p, Key x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
inline Mask at_least(Key a, Key b) {
  return _mm256_castsi256_ps(_mm256_cmpgt_epi32(a, _mm256_sub_epi32(b, set1_key(1))));
}
// low <= a <= low + width, unsigned
inline Mask within(Key a, Key low, Key width) {
  const Key distance = _mm256_sub_epi32(a, low);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_min_epu32(distance, width), distance));
}
// The bits of four masks.
inline uint32_t word_of(const Mask* m) {
  const __m256i low = _mm256_packs_epi32(_mm256_castps_si256(m[0]), _mm256_castps_si256(m[1])),
                high = _mm256_packs_epi32(_mm256_castps_si256(m[2]), _mm256_castps_si256(m[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return uint32_t(_mm256_movemask_epi8(_mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order)));
}
inline Mask from_bits(uint32_t bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(set1_key(int32_t(bits)), lane), lane));
}
inline Float where(Mask m, Float x) { return _mm256_and_ps(m, x); }
inline Float choose(Mask m, Float x, Float y) { return _mm256_blendv_ps(y, x, m); }
inline Mask positive(Float x) { return _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NLE_UQ); }  // or NaN

// Four at once without a branch, which could not be predicted; more are rare where a bracket is narrow.
inline int append(uint16_t* list, uint32_t inside, int base) {
  const int count = __builtin_popcount(inside);
  for (int i = 0; i == 0 || i < count; i += 4)
    for (int j = i; j < i + 4; ++j) {
      list[j] = uint16_t(base + int(_tzcnt_u32(inside)));
      inside = _blsr_u32(inside);
    }
  return count;
}
