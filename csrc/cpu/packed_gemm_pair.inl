// Two blocks of the weight at once with VNNI, after packed_gemm_vnni.inl: 64 rows of codes fill four vectors, and meet
// six rows of x, so that their 24 sums stay in registers over all columns; of fewer vectors, eight. What follows the
// sum follows from there.
constexpr int kPairVectors = 4, kAtOnce = 4, kPairTile = 6;
constexpr int pair_tile(int vectors) { return vectors == kPairVectors ? kPairTile : 8; }

// Of every 128 bits the rows that share bytes, so that `pair_codes` finds four rows after each other.
template <int kField>
inline __m512i ordered(__m512i joined) {
  if constexpr (kField == 8) return joined;
  if constexpr (kField == 4) return _mm512_shuffle_epi32(joined, _MM_PERM_DBCA);
  return _mm512_shuffle_epi8(
      joined, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15)));
}

template <int kChoice>
inline __m512i mixed(__m512i a, __m512i b) {
  return _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), kChoice));
}

// Of each 128 bits the first 32, of each the second 32, and so on; which undoes itself.
inline __m512i fours_transposed(__m512i x) {
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), x);
}

// Of 256 bits and other 256 behind them.
inline __m512i fours_transposed(__m256i x, __m256i y) {
  const __m512i order = _mm512_setr_epi32(0, 4, 16, 20, 1, 5, 17, 21, 2, 6, 18, 22, 3, 7, 19, 23);
  return _mm512_permutex2var_epi32(_mm512_castsi256_si512(x), order, _mm512_castsi256_si512(y));
}

// codes[half][v]: four columns of rows 16v to 16v + 15 of the two blocks.
template <int kBits>
inline void pair_codes(const uint8_t* planes, int64_t plane_bytes, int64_t block_bytes,
                       __m512i (*codes)[kPairVectors]) {
  constexpr int kField = field_of(kBits), kFields = 8 / kField;
  __m512i joined[kField], rows[8];
  join_planes<kBits, kField>(
      [&](int i) {
        const uint8_t* const plane = planes + i * plane_bytes;
        return fours_transposed(load_bytes(plane), load_bytes(plane + block_bytes));
      },
      joined);
  LCS_UNROLL
  for (int i = 0; i < kField; ++i) {
    const __m512i turned =
        _mm512_gf2p8affine_epi64_epi8(_mm512_set1_epi64(int64_t(0x8040201008040201)), ordered<kField>(joined[i]), 0);
    LCS_UNROLL
    for (int f = 0; f < kFields; ++f)
      rows[i * kFields + f] = kFields == 1 ? turned
                                           : _mm512_and_si512(_mm512_srli_epi16(turned, 8 - kField * (f + 1)),
                                                              _mm512_set1_epi8(char((1 << kField) - 1)));
  }
  LCS_UNROLL
  for (int v = 0; v < kPairVectors; ++v) {
    codes[0][v] = mixed<0x88>(rows[2 * v], rows[2 * v + 1]);
    codes[1][v] = mixed<0xdd>(rows[2 * v], rows[2 * v + 1]);
  }
}

template <int kBits>
void expand_pair_of(const PackedPair& e) {
  __m512i sum[kPairVectors];
  LCS_UNROLL
  for (int v = 0; v < kPairVectors; ++v) sum[v] = _mm512_setzero_si512();
  char* to = static_cast<char*>(e.panel);
  for (int64_t step = 0; step < e.steps; ++step, to += kPairStepBytes) {
    __m512i codes[2][kPairVectors];
    const uint8_t* const planes = e.planes + step * kBlockRows;
    if (step % 2 == 0) LCS_UNROLL
    for (int i = 0; i < kBits; ++i) {
      prefetch(planes + i * e.plane_bytes + kAhead);
      prefetch(planes + i * e.plane_bytes + e.block_bytes + kAhead);
    }
    pair_codes<kBits>(planes, e.plane_bytes, e.block_bytes, codes);
    LCS_UNROLL
    for (int half = 0; half < 2; ++half) LCS_UNROLL
    for (int v = 0; v < kPairVectors; ++v) {
      _mm512_store_si512(to + (half * kPairVectors + v) * 64, codes[half][v]);
      if (e.sums) add_products(sum[v], codes[half][v], _mm512_set1_epi8(1));
    }
  }
  if (!e.sums) return;
  LCS_UNROLL
  for (int v = 0; v < kPairVectors; ++v) _mm512_storeu_si512(e.sums + 16 * v, sum[v]);
}

template <int... kBits>
void expand_pair_any(const PackedPair& e, std::integer_sequence<int, kBits...>) {
  static constexpr void (*kTable[])(const PackedPair&) = {expand_pair_of<kBits + 1>...};
  kTable[e.bits - 1](e);
}

void expand_pair(const PackedPair& e) { expand_pair_any(e, std::make_integer_sequence<int, kPlanes>()); }

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
  // that they are added up; and what is stored might be part of this, for all that compilers know, but not of copies.
  template <int kVectors, int kRows>
  [[gnu::always_inline]] inline void rows(int64_t first, const __m512i (*sum)[kVectors]) const {
    const int64_t *const place = o_.place, residual_stride = o_.residual_stride, stride = o_.stride;
    const int32_t* const sums = o_.sums;
    const float *const row_scale = o_.row_scale, *const scale = o_.scale, *const bias = o_.bias;
    const float* const residual = o_.residual;
    float* const y = o_.y;
    int8_t* const codes = o_.codes;
    const bool few = has_few_terms();
    const __mmask64 all = all_;
    __mmask16 mask[kVectors];
    LCS_UNROLL
    for (int v = 0; v < kVectors; ++v) mask[v] = __mmask16(all >> (16 * v));
    LCS_UNROLL
    for (int m = 0; m < kRows; ++m) {
      const int64_t row = first + m, at = place ? place[row] : row;
      const __m512 of_row = _mm512_set1_ps(row_scale[row]);
      __m512i whole[kVectors];
      this->whole(few, sums[row], sum[m], whole);
      __m512 value[kVectors];
      LCS_UNROLL
      for (int v = 0; v < kVectors; ++v)
        value[v] = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(whole[v]), _mm512_loadu_ps(scale + 16 * v)), of_row);
      if (bias) LCS_UNROLL
      for (int v = 0; v < kVectors; ++v) value[v] = _mm512_add_ps(value[v], _mm512_loadu_ps(bias + 16 * v));
      if (residual) LCS_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        const float* const from = residual + at * residual_stride + 16 * v;
        value[v] = _mm512_add_ps(value[v], _mm512_maskz_loadu_ps(mask[v], from));
      }
      LCS_UNROLL
      for (int v = 0; v < kVectors; ++v) value[v] = _mm512_max_ps(floor_, value[v]);  // a NaN stays
      if (codes) _mm512_mask_storeu_epi8(codes + at * stride, all, codes_of<kVectors>(value));
      if (y) LCS_UNROLL
      for (int v = 0; v < kVectors; ++v) _mm512_mask_storeu_ps(y + at * stride + 16 * v, mask[v], value[v]);
    }
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
    return fours_transposed(_mm512_packs_epi16(words[0], words[1]));
  }

  const PackedPairOutput o_;
  const __mmask64 all_;
  const __m512 floor_, inverse_, highest_;
  const __m512i shift_, lowest_, zero_;
  __m512i centers_[kPairVectors];
};

// Of the channels that a vector of words holds 32.
class WordMask {
 public:
  explicit WordMask(int64_t channels) : mask_(channels >= 32 ? ~__mmask32{0} : (__mmask32{1} << channels) - 1) {}
  __m512i load(const int8_t* p) const { return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask_, p)); }
  void store(char* p, __m512i x) const { _mm512_mask_storeu_epi16(p, mask_, x); }

 private:
  __mmask32 mask_;
};

template <int kVectors, int kRows, class Finish>
void multiply_pair_tile(const PackedPairMultiply& p, int64_t row, const Finish& finish, const uint8_t* next,
                        int planes) {
  const char* x[kRows];
  LCS_UNROLL
  for (int m = 0; m < kRows; ++m) x[m] = p.x + p.row[row + m];
  __m512i sum[kRows][kVectors];
  LCS_UNROLL
  for (int m = 0; m < kRows; ++m) LCS_UNROLL
  for (int v = 0; v < kVectors; ++v) sum[m][v] = _mm512_loadu_si512(p.start + 16 * v);
  for (int64_t run = 0; run < p.run_count; ++run) {
    const char* panel = static_cast<const char*>(p.panel) + p.runs[run].begin * kPairStepBytes;
    for (int64_t step = p.runs[run].begin; step < p.runs[run].end; ++step) {
      for (int i = 0; i < planes; ++i) prefetch_second(next + i * p.plane_bytes + step * 2 * kBlockRows);
      const int64_t at = p.step[step];
      LCS_UNROLL
      for (int half = 0; half < 2; ++half, panel += 64 * kPairVectors) {
        __m512i w[kVectors];
        LCS_UNROLL
        for (int v = 0; v < kVectors; ++v) w[v] = _mm512_load_si512(panel + 64 * v);
        LCS_UNROLL
        for (int m = 0; m < kRows; ++m) {
          const __m512i four = wide_broadcast(x[m] + at + 4 * half);
          LCS_UNROLL
          for (int v = 0; v < kVectors; ++v) add_products(sum[m][v], w[v], four);
        }
      }
    }
  }
  finish.template rows<kVectors, kRows>(row, sum);
}

template <int kVectors, class Finish, int... kRows>
void multiply_pair_of(const PackedPairMultiply& p, int64_t row, int rows, const Finish& finish, const uint8_t* next,
                      int planes, std::integer_sequence<int, kRows...>) {
  static constexpr void (*kTable[])(const PackedPairMultiply&, int64_t, const Finish&, const uint8_t*,
                                    int) = {multiply_pair_tile<kVectors, kRows + 1, Finish>...};
  kTable[rows - 1](p, row, finish, next, planes);
}

// Loads the planes of the next block or two meanwhile.
template <int kVectors>
void multiply_vectors(const PackedPairMultiply& p) {
  constexpr int kTile = pair_tile(kVectors);
  const PairFinish finish(p.output);
  const int64_t tiles = (p.rows + kTile - 1) / kTile;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t row = p.rows * i / tiles, end = p.rows * (i + 1) / tiles;
    const int plane = int(p.planes * i / tiles), planes = int(p.planes * (i + 1) / tiles) - plane;
    multiply_pair_of<kVectors>(p, row, int(end - row), finish, p.next + plane * p.plane_bytes, planes,
                               std::make_integer_sequence<int, kTile>());
  }
}

template <int... kVectors>
void multiply_any(const PackedPairMultiply& p, std::integer_sequence<int, kVectors...>) {
  static constexpr void (*kTable[])(const PackedPairMultiply&) = {multiply_vectors<kVectors + 1>...};
  kTable[(p.output.channels - 1) / 16](p);
}

void multiply_pair(const PackedPairMultiply& p) { multiply_any(p, std::make_integer_sequence<int, kPairVectors>()); }
