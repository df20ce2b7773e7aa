// Winograd's F(4 x 4, 3 x 3) for two blocks of the weight at once, after packed_gemm_winograd_2x2.inl, for codes of any
// width (see WinogradWeights for the arithmetic). Words of two channels lie beside each other.
namespace words {

constexpr int kTaps = 9, kSide = 4, kWindow = 6, kOutputs = kSide * kSide;
constexpr int kStepsAtOnce = 2;               // whose codes stay in the first-level cache until they are transformed
constexpr int kWordSteps = kStepColumns / 2;  // of two channels, of a step
constexpr int kInverseOfNine = 0x38e38e39;    // modulo 2^32

inline __m512i add16(__m512i a, __m512i b) { return _mm512_add_epi16(a, b); }
inline __m512i sub16(__m512i a, __m512i b) { return _mm512_sub_epi16(a, b); }
inline __m512i four_times(__m512i a) { return _mm512_slli_epi16(a, 2); }

// G of three values, `apart` apart.
inline void spread(const __m512i* w, int apart, __m512i* to) {
  const __m512i first = w[0], middle = w[apart], last = w[2 * apart], six = _mm512_set1_epi16(6);
  const __m512i outer = add16(first, last), far = add16(first, four_times(last)), twice = add16(middle, middle);
  to[0] = _mm512_mullo_epi16(first, six);
  to[1] = add16(outer, middle);
  to[2] = sub16(outer, middle);
  to[3] = add16(far, twice);
  to[4] = sub16(far, twice);
  to[5] = _mm512_mullo_epi16(last, six);
}

// G w G^T, each position to `to`, `position` bytes apart.
inline void transform_taps(const __m512i* w, int64_t position, char* to) {
  __m512i columns[3][kWindow];
  LCS_UNROLL
  for (int j = 0; j < 3; ++j) spread(w + j, 3, columns[j]);
  LCS_UNROLL
  for (int i = 0; i < kWindow; ++i) {
    const __m512i row[3] = {columns[0][i], columns[1][i], columns[2][i]};
    __m512i result[kWindow];
    spread(row, 1, result);
    LCS_UNROLL
    for (int j = 0; j < kWindow; ++j) _mm512_store_si512(to + (i * kWindow + j) * position, result[j]);
  }
}

// The first or the last two of every four bytes, as words.
template <int kHalf>
inline __m512i widened(__m512i codes) {
  const __m512i places =
      _mm512_broadcast_i32x4(kHalf == 0 ? _mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13)
                                        : _mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15));
  return _mm512_srai_epi16(_mm512_shuffle_epi8(codes, places), 8);
}

template <int kHalf>
inline void transform_codes(const __m512i* codes, int64_t position, char* to) {
  __m512i w[kTaps];
  LCS_UNROLL
  for (int tap = 0; tap < kTaps; ++tap) w[tap] = widened<kHalf>(codes[tap]);
  transform_taps(w, position, to);
}

template <int kBits>
void weights_of(const WinogradWeights& e) {
  const __m512i one = _mm512_set1_epi8(1);
  alignas(64) int32_t sums[kPairRows] = {};  // of the codes
  for (int64_t first = 0; first < e.steps; first += kStepsAtOnce) {
    const int steps = int(std::min<int64_t>(kStepsAtOnce, e.steps - first));
    __m512i codes[kStepsAtOnce][kTaps][2][kPairVectors];
    for (int s = 0; s < steps; ++s)
      for (int tap = 0; tap < kTaps; ++tap) {
        const uint8_t* const planes = e.planes + (tap * e.tap_steps + first + s) * kBlockRows;
        if (s % 2 == 0) LCS_UNROLL
        for (int i = 0; i < kBits; ++i) {
          prefetch(planes + i * e.plane_bytes + kAhead / 2);
          prefetch(planes + i * e.plane_bytes + e.block_bytes + kAhead / 2);
        }
        pair_codes<kBits>(planes, e.plane_bytes, e.block_bytes, codes[s][tap]);
      }
    for (int v = 0; v < kPairVectors; ++v) {
      __m512i sum = _mm512_load_si512(sums + 16 * v);
      for (int i = 0; i < 2 * steps; ++i) {
        const int64_t column = (first + i / 2) * kStepColumns + i % 2 * 4, left = e.columns - column;
        const uint32_t inside = left >= 4 ? ~uint32_t{0} : left <= 0 ? 0 : (uint32_t{1} << 8 * left) - 1;
        const __m512i center = _mm512_set1_epi32(int32_t(inside & (0x01010101u << (kBits - 1))));
        __m512i w[kTaps];
        LCS_UNROLL
        for (int tap = 0; tap < kTaps; ++tap) {
          w[tap] = _mm512_sub_epi8(codes[i / 2][tap][i % 2][v], center);
          sum = _mm512_dpbusd_epi32(sum, one, w[tap]);
        }
        char* const to = static_cast<char*>(e.panel) + ((first * kWordSteps + 2 * i) * kPairVectors + v) * int64_t{64};
        transform_codes<0>(w, e.position, to);
        transform_codes<1>(w, e.position, to + 64 * kPairVectors);
      }
      _mm512_store_si512(sums + 16 * v, sum);
    }
  }
  for (int row = 0; row < kPairRows; ++row) e.start[row] = (e.more ? e.start[row] : 0) - e.zero * sums[row];
}

template <int... kBits>
void weights_any(const WinogradWeights& e, std::integer_sequence<int, kBits...>) {
  static constexpr void (*kTable[])(const WinogradWeights&) = {weights_of<kBits + 1>...};
  kTable[e.bits - 1](e);
}

void weights(const WinogradWeights& e) { weights_any(e, std::make_integer_sequence<int, kPlanes>()); }

// B^T of six values.
inline void differences(const __m512i* x, __m512i* to) {
  const __m512i even = sub16(x[4], x[2]), odd = sub16(x[3], x[1]), twice = add16(odd, odd);
  to[0] = add16(four_times(sub16(x[0], x[2])), even);
  to[1] = sub16(add16(x[3], x[4]), four_times(add16(x[1], x[2])));
  to[2] = add16(sub16(x[4], x[3]), four_times(sub16(x[1], x[2])));
  to[3] = add16(even, twice);
  to[4] = sub16(even, twice);
  to[5] = sub16(sub16(x[5], x[3]), four_times(odd));
}

constexpr int kRun = 8;  // tiles of a row, whose columns stay in the first-level cache

// B^T of columns of x, of 32 channels from c on.
inline void transform_columns(const WinogradInput& in, int64_t c, __mmask32 mask, int64_t begin, int64_t end,
                              __m512i (*to)[kWindow]) {
  for (int64_t j = begin; j < end; ++j, ++to) {
    const int64_t at = std::min(j, in.columns - 1) * in.column + c;
    __m512i x[kWindow], column[kWindow];
    LCS_UNROLL
    for (int i = 0; i < kWindow; ++i) x[i] = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, in.rows[i] + at));
    differences(x, column);
    LCS_UNROLL
    for (int i = 0; i < kWindow; ++i) _mm512_store_si512(*to + i, column[i]);
  }
}

bool input(const WinogradInput& in) {
  for (int64_t c = 0; c < in.channels; c += 32) {
    const __mmask32 mask = in.channels - c >= 32 ? ~__mmask32{0} : (__mmask32{1} << (in.channels - c)) - 1;
    for (int64_t first = 0; first < in.tiles; first += kRun) {
      const int64_t end = std::min(first + kRun, in.tiles);
      __m512i columns[kSide * kRun + 2][kWindow];
      transform_columns(in, c, mask, kSide * first, kSide * end + 2, columns);
      const __m512i(*x)[kWindow] = columns;
      for (int64_t tile = first; tile < end; ++tile, x += kSide) {
        char* to = in.to + tile * in.tile + c * 2;
        for (int i = 0; i < kWindow; ++i) {
          __m512i row[kWindow], result[kWindow];
          LCS_UNROLL
          for (int j = 0; j < kWindow; ++j) row[j] = _mm512_load_si512(x[j] + i);
          differences(row, result);
          LCS_UNROLL
          for (int j = 0; j < kWindow; ++j, to += in.position) _mm512_mask_storeu_epi16(to, mask, result[j]);
        }
      }
    }
  }
  return true;
}

// A^T of six sums.
inline void gather(const __m512i* m, __m512i* to) {
  const __m512i first = add32(m[1], m[2]), second = add32(m[3], m[4]), c = sub32(m[2], m[1]), d = sub32(m[3], m[4]);
  to[0] = sub32(add32(m[0], second), _mm512_slli_epi32(first, 2));
  to[1] = add32(add32(c, c), d);
  to[2] = sub32(second, first);
  to[3] = add32(add32(c, m[5]), add32(d, d));
}

constexpr int kFactor[kSide] = {3, 2, 1, 1};  // of a row of A^T: 3 times a power of two

// Of 64 rows: the outputs of a tile, of rows of positions whose columns are gathered.
inline void gather_rows(const __m512i (*rows)[kSide][kPairVectors], __m512i (*to)[kPairVectors]) {
  const __m512i inverse = _mm512_set1_epi32(kInverseOfNine);
  for (int v = 0; v < kPairVectors; ++v) LCS_UNROLL
  for (int j = 0; j < kSide; ++j) {
    __m512i m[kWindow], result[kSide];
    LCS_UNROLL
    for (int i = 0; i < kWindow; ++i) m[i] = rows[i][j][v];
    gather(m, result);
    LCS_UNROLL
    for (int i = 0; i < kSide; ++i)
      to[i * kSide + j][v] = _mm512_srai_epi32(_mm512_mullo_epi32(result[i], inverse), kFactor[i] + kFactor[j]);
  }
}

inline void finish_tile(const WinogradMultiply& p, int64_t tile, const PairMasks& masks,
                        const __m512i (*rows)[kSide][kPairVectors]) {
  __m512i outputs[kOutputs][kPairVectors];
  gather_rows(rows, outputs);
  for (int i = 0; i < kOutputs; ++i) {
    const int64_t at = tile * kOutputs + i;
    if (p.output.place[at] < 0) continue;
    int32_t* const sums = p.sums + at * kPairRows;
    LCS_UNROLL
    for (int v = 0; v < kPairVectors; ++v) {
      if (p.more) outputs[i][v] = add32(outputs[i][v], _mm512_loadu_si512(sums + 16 * v));
      if (p.last)
        outputs[i][v] = add32(outputs[i][v], _mm512_load_si512(p.start + 16 * v));
      else
        _mm512_storeu_si512(sums + 16 * v, outputs[i][v]);
    }
    if (p.last) finish_pair(p.output, masks, at, outputs[i]);
  }
}

template <int kTiles>
void multiply_tiles(const WinogradMultiply& p, int64_t tile, const PairMasks& masks) {
  const char* const first = p.x + tile * p.tile;
  __m512i rows[kTiles][kWindow][kSide][kPairVectors];
  for (int i = 0; i < kWindow; ++i) {
    __m512i products[kWindow][kTiles][kPairVectors];
    for (int j = 0; j < kWindow; ++j) {
      const int position = i * kWindow + j;
      const char* panel = static_cast<const char*>(p.panel) + position * p.panel_position;
      const char* x[kTiles];
      LCS_UNROLL
      for (int m = 0; m < kTiles; ++m) x[m] = first + m * p.tile + position * p.position;
      __m512i sum[kTiles][kPairVectors];
      LCS_UNROLL
      for (int m = 0; m < kTiles; ++m) LCS_UNROLL
      for (int v = 0; v < kPairVectors; ++v) sum[m][v] = _mm512_setzero_si512();
      for (int64_t step = 0; step < kWordSteps * p.steps; ++step, panel += 64 * kPairVectors) {
        __m512i w[kPairVectors];
        LCS_UNROLL
        for (int v = 0; v < kPairVectors; ++v) w[v] = _mm512_load_si512(panel + 64 * v);
        LCS_UNROLL
        for (int m = 0; m < kTiles; ++m) {
          const __m512i two = wide_broadcast(x[m] + 4 * step);
          LCS_UNROLL
          for (int v = 0; v < kPairVectors; ++v) sum[m][v] = _mm512_dpwssd_epi32(sum[m][v], two, w[v]);
        }
      }
      LCS_UNROLL
      for (int m = 0; m < kTiles; ++m) LCS_UNROLL
      for (int v = 0; v < kPairVectors; ++v) products[j][m][v] = sum[m][v];
    }
    for (int m = 0; m < kTiles; ++m) LCS_UNROLL
    for (int v = 0; v < kPairVectors; ++v) {
      __m512i of[kWindow], result[kSide];
      LCS_UNROLL
      for (int j = 0; j < kWindow; ++j) of[j] = products[j][m][v];
      gather(of, result);
      LCS_UNROLL
      for (int j = 0; j < kSide; ++j) rows[m][i][j][v] = result[j];
    }
  }
  for (int m = 0; m < kTiles; ++m) finish_tile(p, tile + m, masks, rows[m]);
}

template <int... kTiles>
void multiply_of(const WinogradMultiply& p, int64_t tile, int tiles, const PairMasks& masks,
                 std::integer_sequence<int, kTiles...>) {
  static constexpr void (*kTable[])(const WinogradMultiply&, int64_t,
                                    const PairMasks&) = {multiply_tiles<kTiles + 1>...};
  kTable[tiles - 1](p, tile, masks);
}

void multiply(const WinogradMultiply& p) {
  const PairMasks masks(p.output.channels);
  const int64_t groups = (p.tiles + kPairTile - 1) / kPairTile;
  for (int64_t i = 0; i < groups; ++i) {
    const int64_t tile = p.tiles * i / groups, end = p.tiles * (i + 1) / groups;
    multiply_of(p, tile, int(end - tile), masks, std::make_integer_sequence<int, kPairTile>());
  }
}

}  // namespace words
