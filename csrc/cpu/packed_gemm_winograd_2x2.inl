// Winograd's F(2 x 2, 3 x 3) for two blocks of the weight at once, after packed_gemm_pair.inl, of what expand_pair and
// multiply_pair are to the plain product (see WinogradWeights for the arithmetic).
inline __m512i add32(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }
inline __m512i sub32(__m512i a, __m512i b) { return _mm512_sub_epi32(a, b); }

namespace bytes {

constexpr int kTaps = 9, kSide = 4, kPositions = kSide * kSide;  // of a kernel; of a window
constexpr int kStepsAtOnce = 4;        // whose codes stay in the first-level cache until they are transformed
constexpr char kShifted = char(0x80);  // added to x, modulo 256, so that it is not negative

inline __m512i add8(__m512i a, __m512i b) { return _mm512_add_epi8(a, b); }
inline __m512i sub8(__m512i a, __m512i b) { return _mm512_sub_epi8(a, b); }

using Combine = __m512i(__m512i, __m512i);

// G of three values, `apart` apart.
template <Combine add, Combine sub>
inline void spread(const __m512i* w, int apart, __m512i* to) {
  const __m512i outer = add(w[0], w[2 * apart]);
  to[0] = add(w[0], w[0]);
  to[1] = add(outer, w[apart]);
  to[2] = sub(outer, w[apart]);
  to[3] = add(w[2 * apart], w[2 * apart]);
}

// G w G^T; each(i, result) of the 16 positions.
template <Combine add, Combine sub, class Each>
inline void transform_taps(const __m512i* w, const Each& each) {
  __m512i rows[3][kSide];  // of columns of taps
  LCS_UNROLL
  for (int column = 0; column < 3; ++column) spread<add, sub>(w + column, 3, rows[column]);
  LCS_UNROLL
  for (int i = 0; i < kSide; ++i) {
    const __m512i row[3] = {rows[0][i], rows[1][i], rows[2][i]};
    __m512i to[kSide];
    spread<add, sub>(row, 1, to);
    LCS_UNROLL
    for (int j = 0; j < kSide; ++j) each(kSide * i + j, to[j]);
  }
}

template <int kBits>
void weights_of(const WinogradWeights& e) {
  const __m512i one = _mm512_set1_epi8(1);
  alignas(64) int32_t sums[kTaps][kPairRows] = {};  // of the codes
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
      __m512i sum[kTaps];
      LCS_UNROLL
      for (int tap = 0; tap < kTaps; ++tap) sum[tap] = _mm512_load_si512(sums[tap] + 16 * v);
      for (int i = 0; i < 2 * steps; ++i) {
        const int64_t column = (first + i / 2) * kStepColumns + i % 2 * 4, left = e.columns - column;
        const uint32_t inside = left >= 4 ? ~uint32_t{0} : left <= 0 ? 0 : (uint32_t{1} << 8 * left) - 1;
        const __m512i center = _mm512_set1_epi32(int32_t(inside & (0x01010101u << (kBits - 1))));
        __m512i w[kTaps];
        LCS_UNROLL
        for (int tap = 0; tap < kTaps; ++tap) {
          const __m512i code = codes[i / 2][tap][i % 2][v];
          sum[tap] = _mm512_dpbusd_epi32(sum[tap], one, w[tap] = sub8(code, center));
        }
        char* const to = static_cast<char*>(e.panel) + (first * 2 + i) * 64 * kPairVectors + 64 * v;
        transform_taps<add8, sub8>(w, [&](int p, __m512i w) { _mm512_store_si512(to + p * e.position, w); });
      }
      LCS_UNROLL
      for (int tap = 0; tap < kTaps; ++tap) _mm512_store_si512(sums[tap] + 16 * v, sum[tap]);
    }
  }
  for (int v = 0; v < kPairVectors; ++v) {
    __m512i w[kTaps];
    for (int tap = 0; tap < kTaps; ++tap) w[tap] = _mm512_load_si512(sums[tap] + 16 * v);
    transform_taps<add32, sub32>(w, [&](int p, __m512i sum) {
      const __m512i start = sub32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, 7));
      _mm512_storeu_si512(e.start + p * kPairRows + 16 * v, start);
    });
  }
}

void weights(const WinogradWeights& e) {
  static constexpr void (*kTable[])(const WinogradWeights&) = {weights_of<1>, weights_of<2>, weights_of<3>,
                                                               weights_of<4>};
  static_assert(std::size(kTable) == kWinogradBits);
  kTable[e.bits - 1](e);
}

// B^T of a column of x.
inline void transform_column(const WinogradInput& in, int64_t at, __mmask64 mask, __m512i lowest, __m512i& beyond,
                             __m512i* to) {
  __m512i x[kSide];
  LCS_UNROLL
  for (int i = 0; i < kSide; ++i) {
    x[i] = _mm512_maskz_loadu_epi8(mask, in.rows[i] + at);
    beyond = _mm512_or_si512(beyond, sub8(x[i], lowest));
  }
  to[0] = sub8(x[0], x[2]);
  to[1] = add8(x[1], x[2]);
  to[2] = sub8(x[2], x[1]);
  to[3] = sub8(x[1], x[3]);
}

bool input(const WinogradInput& in) {
  const __m512i lowest = _mm512_set1_epi8(char(in.lowest)), shifted = _mm512_set1_epi8(kShifted),
                zero = _mm512_set1_epi8(char(0x80 - 4 * in.zero));
  __m512i beyond = _mm512_setzero_si512();
  for (int64_t c = 0; c < in.channels; c += 64) {
    const __mmask64 mask = in.channels - c >= 64 ? ~__mmask64{0} : (__mmask64{1} << (in.channels - c)) - 1;
    const auto column = [&](int64_t j, __m512i* to) {
      transform_column(in, std::min(j, in.columns - 1) * in.column + c, mask, lowest, beyond, to);
    };
    __m512i x[kSide][kSide];  // of columns
    column(0, x[0]);
    column(1, x[1]);
    char* to = in.to + c;
    for (int64_t tile = 0; tile < in.tiles; ++tile, to += in.tile) {
      column(2 * tile + 2, x[2]);
      column(2 * tile + 3, x[3]);
      LCS_UNROLL
      for (int i = 0; i < kSide; ++i) {
        const __m512i row[kSide] = {sub8(x[0][i], x[2][i]), add8(x[1][i], x[2][i]), sub8(x[2][i], x[1][i]),
                                    sub8(x[1][i], x[3][i])};
        LCS_UNROLL
        for (int j = 0; j < kSide; ++j)
          _mm512_mask_storeu_epi8(to + (kSide * i + j) * in.position, mask,
                                  add8(row[j], i == 1 && j == 1 ? zero : shifted));
      }
      LCS_UNROLL
      for (int i = 0; i < kSide; ++i) x[0][i] = x[2][i], x[1][i] = x[3][i];
    }
  }
  return _mm512_test_epi8_mask(beyond, _mm512_set1_epi8(char(-(1 << in.bits)))) == 0;
}

// A^T of four sums.
inline void gather(__m512i a, __m512i b, __m512i c, __m512i d, __m512i* to) {
  to[0] = add32(add32(a, b), c);
  to[1] = sub32(sub32(b, c), d);
}

template <int kTiles>
inline void finish_tile(int64_t tile, const PairFinish& finish, const __m512i (*products)[kTiles][kPairVectors],
                        int m) {
  __m512i sums[4][kPairVectors];
  LCS_UNROLL
  for (int v = 0; v < kPairVectors; ++v) {
    __m512i rows[kSide][2];  // of columns
    LCS_UNROLL
    for (int j = 0; j < kSide; ++j)
      gather(products[j][m][v], products[4 + j][m][v], products[8 + j][m][v], products[12 + j][m][v], rows[j]);
    LCS_UNROLL
    for (int i = 0; i < 2; ++i) {
      __m512i to[2];
      gather(rows[0][i], rows[1][i], rows[2][i], rows[3][i], to);
      LCS_UNROLL
      for (int j = 0; j < 2; ++j) sums[2 * i + j][v] = _mm512_srai_epi32(to[j], 2);
    }
  }
  finish.outputs<4>(4 * tile, 0, sums);
}

template <int kTiles>
void multiply_tiles(const WinogradMultiply& p, int64_t tile, const PairFinish& finish) {
  const char* const first = p.x + tile * p.tile;
  __m512i products[kPositions][kTiles][kPairVectors];
  for (int position = 0; position < kPositions; ++position) {
    prefetch_outputs(p.output, 4 * tile, 4 * kTiles, position, kPositions, 0, kPairRows);
    const char* panel = static_cast<const char*>(p.panel) + position * p.panel_position;
    const char* x[kTiles];
    LCS_UNROLL
    for (int m = 0; m < kTiles; ++m) x[m] = first + m * p.tile + position * p.position;
    __m512i sum[kTiles][kPairVectors];
    LCS_UNROLL
    for (int m = 0; m < kTiles; ++m) LCS_UNROLL
    for (int v = 0; v < kPairVectors; ++v) sum[m][v] = _mm512_loadu_si512(p.start + position * kPairRows + 16 * v);
    for (int64_t step = 0; step < 2 * p.steps; ++step, panel += 64 * kPairVectors) {
      __m512i w[kPairVectors];
      LCS_UNROLL
      for (int v = 0; v < kPairVectors; ++v) w[v] = _mm512_load_si512(panel + 64 * v);
      LCS_UNROLL
      for (int m = 0; m < kTiles; ++m) {
        const __m512i four = wide_broadcast(x[m] + 4 * step);
        LCS_UNROLL
        for (int v = 0; v < kPairVectors; ++v) add_products(sum[m][v], four, w[v]);
      }
    }
    LCS_UNROLL
    for (int m = 0; m < kTiles; ++m) LCS_UNROLL
    for (int v = 0; v < kPairVectors; ++v) products[position][m][v] = sum[m][v];
  }
  for (int m = 0; m < kTiles; ++m) finish_tile<kTiles>(tile + m, finish, products, m);
}

template <int... kTiles>
void multiply_of(const WinogradMultiply& p, int64_t tile, int tiles, const PairFinish& finish,
                 std::integer_sequence<int, kTiles...>) {
  static constexpr void (*kTable[])(const WinogradMultiply&, int64_t,
                                    const PairFinish&) = {multiply_tiles<kTiles + 1>...};
  kTable[tiles - 1](p, tile, finish);
}

void multiply(const WinogradMultiply& p) {
  const PairFinish finish(p.output);
  const int64_t groups = (p.tiles + kPairTile - 1) / kPairTile;
  for (int64_t i = 0; i < groups; ++i) {
    const int64_t tile = p.tiles * i / groups, end = p.tiles * (i + 1) / groups;
    multiply_of(p, tile, int(end - tile), finish, std::make_integer_sequence<int, kPairTile>());
  }
}

}  // namespace bytes
