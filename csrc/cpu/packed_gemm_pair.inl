// Two blocks of the weight at once with VNNI, after packed_gemm_vnni.inl and packed_pair_finish.inl: 64 rows of codes
// fill four vectors, and meet six rows of x, so that their 24 sums stay in registers over all columns; of fewer
// vectors, eight. What follows the sum follows from there.
constexpr int kAtOnce = 4, kPairTile = 6;
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
