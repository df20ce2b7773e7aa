// Squares of 8 x 8, after lanes_avx2.inl in a namespace `eight`.
constexpr int kSquare = 8;

inline __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The first n elements; zeros behind them.
inline __m256 load_first(const float* p, int64_t n) {
  return n == 8 ? eight::load(p) : _mm256_maskload_ps(p, first_lanes(n));
}
inline __m256 load_first(const BFloat16* p, int64_t n) {
  if (n == 8) return eight::load(p);
  BFloat16 padded[8] = {};
  for (int64_t i = 0; i < n; ++i) padded[i] = p[i];
  return eight::load(padded);
}
// n elements `step` apart.
template <class From>
inline __m256 load_apart(const From* p, int64_t n, int64_t step) {
  if (step == 1) return load_first(p, n);
  From all[8] = {};
  for (int64_t i = 0; i < n; ++i) all[i] = p[i * step];
  return eight::load(all);
}
inline __m256 load_apart(const float* p, int64_t n, int64_t step) {
  if (step != 2 || n != 8) return load_apart<float>(p, n, step);
  // 0, 2, 8, 10 and 4, 6, 12, 14; no more than the 15 elements that are there is read
  const __m256 pairs = _mm256_shuffle_ps(eight::load(p), eight::load(p + 7), _MM_SHUFFLE(3, 1, 2, 0));
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(pairs), _MM_SHUFFLE(3, 1, 2, 0)));
}
// Not a masked store, which some processors take dozens of cycles for.
inline void store_first(float* p, __m256 x, int64_t n) {
  if (n == 8) return eight::store(p, x);
  __m128 part = _mm256_castps256_ps128(x);
  if (n & 4) {
    _mm_storeu_ps(p, part);
    part = _mm256_extractf128_ps(x, 1);
    p += 4;
  }
  if (n & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), part);
    part = _mm_movehl_ps(part, part);
    p += 2;
  }
  if (n & 1) _mm_store_ss(p, part);
}
inline void store_first(BFloat16* p, __m256 x, int64_t n) {
  if (n == 8) return eight::store(p, eight::rounded<BFloat16>(x));
  BFloat16 all[8];
  eight::store(all, eight::rounded<BFloat16>(x));
  for (int64_t i = 0; i < n; ++i) p[i] = all[i];
}

// to[i] = from[i * step], for at most 8 elements.
template <class From, class To>
inline void copy_first(const From* from, int64_t step, To* to, int64_t n) {
  store_first(to, load_apart(from, n, step), n);
}

// 8 elements past the caches, to their own multiple of an address.
template <class From, class To>
inline void stream_square(const From* from, To* to) {
  eight::stream(to, eight::rounded<To>(eight::load(from)));
}

// r[i] becomes what was element i of every r, within the halves of 4 elements.
inline __attribute__((always_inline)) void transpose_halves(__m256 (&r)[4]) {
  const __m256 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]),
               c = _mm256_unpacklo_ps(r[2], r[3]), d = _mm256_unpackhi_ps(r[2], r[3]);
  r[0] = _mm256_shuffle_ps(a, c, 0x44);
  r[1] = _mm256_shuffle_ps(a, c, 0xee);
  r[2] = _mm256_shuffle_ps(b, d, 0x44);
  r[3] = _mm256_shuffle_ps(b, d, 0xee);
}

// Always inline: as a function it would take the square through memory.
inline __attribute__((always_inline)) void transpose(__m256 (&r)[8]) {
  __m256 low[4] = {r[0], r[1], r[2], r[3]}, high[4] = {r[4], r[5], r[6], r[7]};
  transpose_halves(low);
  transpose_halves(high);
  LCS_UNROLL
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(low[i], high[i], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(low[i], high[i], 0x31);
  }
}

// to[column * to_stride + row] = from[row * from_stride + column * step], for at most 8 rows and columns.
template <class From, class To>
inline void transpose(const From* from, int64_t from_stride, int64_t step, To* to, int64_t to_stride, int64_t rows,
                      int64_t columns) {
  __m256 r[8];
  if (rows == 8 && columns == 8 && step == 1) {  // without branches the square stays in registers
    LCS_UNROLL
    for (int i = 0; i < 8; ++i) r[i] = eight::load(from + i * from_stride);
    transpose(r);
    LCS_UNROLL
    for (int i = 0; i < 8; ++i) eight::store(to + i * to_stride, eight::rounded<To>(r[i]));
    return;
  }
  for (int i = 0; i < 8; ++i) r[i] = i < rows ? load_apart(from + i * from_stride, columns, step) : _mm256_setzero_ps();
  transpose(r);
  for (int i = 0; i < 8 && i < columns; ++i) store_first(to + i * to_stride, r[i], rows);
}
