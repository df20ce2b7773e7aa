// Winograd's F(4 x 4, 3 x 3) for two blocks of the weight at once and codes of any width (see WinogradWeights for the
// arithmetic), in vectors of any size, after packed_gemm.inl and what its file says of two blocks: kPairVectors vectors
// hold a sum of each of their 64 rows, of which kAtOnce are multiplied at once, by kPairTile tiles; pair_codes,
// WordMask and PairFinish. Words of two channels lie beside each other.
namespace words {

constexpr int kTaps = 9, kSide = 4, kWindow = 6, kOutputs = kSide * kSide;
constexpr int kStepsAtOnce = 2;                  // whose codes stay in the first-level cache until they are transformed
constexpr int kWordSteps = kStepColumns / 2;     // of two channels, of a step
constexpr uint32_t kInverseOfNine = 0x38e38e39;  // modulo 2^32
constexpr int kPieces = kPairVectors / kAtOnce;  // of the rows, each in a panel of its own
constexpr int kSums = sizeof(Wide) / 4, kWords = sizeof(Wide) / 2, kPieceRows = kAtOnce * kSums;

typedef uint8_t Bytes __attribute__((vector_size(sizeof(Wide))));
typedef uint16_t Words __attribute__((vector_size(sizeof(Wide))));
typedef int16_t SignedWords __attribute__((vector_size(sizeof(Wide))));
typedef uint32_t Sums __attribute__((vector_size(sizeof(Wide))));
typedef int32_t SignedSums __attribute__((vector_size(sizeof(Wide))));

// G of three values, `apart` apart.
inline void spread(const Words* w, int apart, Words* to) {
  const Words first = w[0], middle = w[apart], last = w[2 * apart];
  const Words outer = first + last, far = first + (last << 2), twice = middle + middle;
  to[0] = first * 6;
  to[1] = outer + middle;
  to[2] = outer - middle;
  to[3] = far + twice;
  to[4] = far - twice;
  to[5] = last * 6;
}

// G w G^T, each position to `to`, `position` bytes apart.
inline void transform_taps(const Words* w, int64_t position, char* to) {
  Words columns[3][kWindow];
  LCS_UNROLL
  for (int j = 0; j < 3; ++j) spread(w + j, 3, columns[j]);
  LCS_UNROLL
  for (int i = 0; i < kWindow; ++i) {
    const Words row[3] = {columns[0][i], columns[1][i], columns[2][i]};
    Words result[kWindow];
    spread(row, 1, result);
    LCS_UNROLL
    for (int j = 0; j < kWindow; ++j) wide_store(to + (i * kWindow + j) * position, (Wide)result[j]);
  }
}

// The first or the last two of every four bytes, as words.
template <int kHalf>
inline Words widened(Wide codes) {
  const __m128i places = kHalf == 0 ? _mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13)
                                    : _mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15);
  return (Words)((SignedWords)shuffle_bytes(codes, places) >> 8);
}

template <int kHalf>
inline void transform_codes(const Wide* codes, int64_t position, char* to) {
  Words w[kTaps];
  LCS_UNROLL
  for (int tap = 0; tap < kTaps; ++tap) w[tap] = widened<kHalf>(codes[tap]);
  transform_taps(w, position, to);
}

// Of the panel of `steps` steps: where two channels of the v-th vector's rows lie, of a position.
inline int64_t panel_offset(int64_t steps, int64_t word_step, int v) {
  return ((v / kAtOnce * steps * kWordSteps + word_step) * kAtOnce + v % kAtOnce) * int64_t(sizeof(Wide));
}

// Of the memory for codes: where those of a tap lie, four columns of a piece's rows.
inline Wide* codes_at(const WinogradWeights& e, int piece, int64_t half_step, int tap) {
  return static_cast<Wide*>(e.codes) + ((piece * e.steps * 2 + half_step) * kTaps + tap) * kAtOnce;
}

template <int kBits>
void unpack(const WinogradWeights& e) {
  for (int tap = 0; tap < kTaps; ++tap)
    for (int64_t step = 0; step < e.steps; ++step) {
      Wide codes[2][kPairVectors];
      pair_codes<kBits>(e.planes + (tap * e.tap_steps + step) * kBlockRows, e.plane_bytes, e.block_bytes, codes);
      for (int half = 0; half < 2; ++half)
        for (int v = 0; v < kPairVectors; ++v)
          wide_store(codes_at(e, v / kAtOnce, 2 * step + half, tap) + v % kAtOnce, codes[half][v]);
    }
}

// The weights of four columns of the v-th vector's rows; codes of taps lie `apart` vectors apart.
inline void transform_four(const WinogradWeights& e, const Wide* codes, int64_t apart, int64_t half_step, int v,
                           Wide& sum) {
  const int64_t left = e.columns - half_step * 4;
  const uint32_t inside = left >= 4 ? ~uint32_t{0} : left <= 0 ? 0 : (uint32_t{1} << 8 * left) - 1;
  const Wide center = wide_sums(int32_t(inside & (0x01010101u << (e.bits - 1)))), one = wide_bytes(1);
  Wide w[kTaps];
  LCS_UNROLL
  for (int tap = 0; tap < kTaps; ++tap) {
    w[tap] = (Wide)((Bytes)codes[tap * apart] - (Bytes)center);
    add_dot_bytes<1>(sum, &one, w + tap);
  }
  char* const to = static_cast<char*>(e.panel) + panel_offset(e.steps, half_step * 2, v);
  transform_codes<0>(w, e.position, to);
  transform_codes<1>(w, e.position, to + kAtOnce * sizeof(Wide));
}

void find_start(const WinogradWeights& e, const int32_t* sums) {
  for (int row = kPieceRows * e.pieces.begin; row < kPieceRows * e.pieces.end; ++row)
    e.start[row] = (e.more ? e.start[row] : 0) - e.zero * sums[row];
}

// Piece by piece, of codes that are unpacked for the first one.
template <int kBits>
void weights_of_pieces(const WinogradWeights& e) {
  if (e.pieces.begin == 0) unpack<kBits>(e);
  alignas(64) int32_t sums[kPairRows];  // of the codes
  for (int piece = e.pieces.begin; piece < e.pieces.end; ++piece) {
    Wide sum[kAtOnce];
    for (Wide& s : sum) s = wide_zero();
    for (int64_t i = 0; i < 2 * e.steps; ++i) LCS_UNROLL
    for (int v = 0; v < kAtOnce; ++v)
      transform_four(e, codes_at(e, piece, i, 0) + v, kAtOnce, i, (piece - e.pieces.begin) * kAtOnce + v, sum[v]);
    for (int v = 0; v < kAtOnce; ++v) wide_store(sums + piece * kPieceRows + kSums * v, sum[v]);
  }
  find_start(e, sums);
}

template <int kBits>
void weights_of(const WinogradWeights& e) {
  if constexpr (kPieces > 1) return weights_of_pieces<kBits>(e);
  alignas(64) int32_t sums[kPairRows] = {};  // of the codes
  for (int64_t first = 0; first < e.steps; first += kStepsAtOnce) {
    const int steps = int(std::min<int64_t>(kStepsAtOnce, e.steps - first));
    Wide codes[kStepsAtOnce][kTaps][2][kPairVectors];
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
      Wide sum = wide_load(sums + kSums * v);
      for (int i = 0; i < 2 * steps; ++i)
        transform_four(e, &codes[i / 2][0][i % 2][v], 2 * kPairVectors, 2 * first + i, v, sum);
      wide_store(sums + kSums * v, sum);
    }
  }
  find_start(e, sums);
}

template <int... kBits>
void weights_any(const WinogradWeights& e, std::integer_sequence<int, kBits...>) {
  static constexpr void (*kTable[])(const WinogradWeights&) = {weights_of<kBits + 1>...};
  kTable[e.bits - 1](e);
}

void weights(const WinogradWeights& e) { weights_any(e, std::make_integer_sequence<int, kPlanes>()); }

// B^T of six values.
inline void differences(const Words* x, Words* to) {
  const Words even = x[4] - x[2], odd = x[3] - x[1], twice = odd + odd;
  to[0] = ((x[0] - x[2]) << 2) + even;
  to[1] = x[3] + x[4] - ((x[1] + x[2]) << 2);
  to[2] = x[4] - x[3] + ((x[1] - x[2]) << 2);
  to[3] = even + twice;
  to[4] = even - twice;
  to[5] = x[5] - x[3] - (odd << 2);
}

constexpr int kRun = 8;  // tiles of a row, whose columns stay in the first-level cache

// B^T of columns of x, of the channels of `mask` from c on.
inline void transform_columns(const WinogradInput& in, int64_t c, const WordMask& mask, int64_t begin, int64_t end,
                              Words (*to)[kWindow]) {
  for (int64_t j = begin; j < end; ++j, ++to) {
    const int64_t at = std::min(j, in.columns - 1) * in.column + c;
    Words x[kWindow], column[kWindow];
    LCS_UNROLL
    for (int i = 0; i < kWindow; ++i) x[i] = (Words)mask.load(in.rows[i] + at);
    differences(x, column);
    LCS_UNROLL
    for (int i = 0; i < kWindow; ++i) (*to)[i] = column[i];
  }
}

bool input(const WinogradInput& in) {
  for (int64_t c = 0; c < in.channels; c += kWords) {
    const WordMask mask(in.channels - c);
    for (int64_t first = 0; first < in.tiles; first += kRun) {
      const int64_t end = std::min(first + kRun, in.tiles);
      Words columns[kSide * kRun + 2][kWindow];
      transform_columns(in, c, mask, kSide * first, kSide * end + 2, columns);
      const Words(*x)[kWindow] = columns;
      for (int64_t tile = first; tile < end; ++tile, x += kSide) {
        char* to = in.to + tile * in.tile + c * 2;
        for (int i = 0; i < kWindow; ++i) {
          Words row[kWindow], result[kWindow];
          LCS_UNROLL
          for (int j = 0; j < kWindow; ++j) row[j] = x[j][i];
          differences(row, result);
          LCS_UNROLL
          for (int j = 0; j < kWindow; ++j, to += in.position) mask.store(to, (Wide)result[j]);
        }
      }
    }
  }
  return true;
}

// A^T of six sums.
inline void gather(const Sums* m, Sums* to) {
  const Sums first = m[1] + m[2], second = m[3] + m[4], c = m[2] - m[1], d = m[3] - m[4];
  to[0] = m[0] + second - (first << 2);
  to[1] = c + c + d;
  to[2] = second - first;
  to[3] = c + m[5] + (d + d);
}

constexpr int kFactor[kSide] = {3, 2, 1, 1};  // of a row of A^T: 3 times a power of two

// Of a piece's rows: the outputs of a tile, of rows of positions whose columns are gathered.
inline void gather_rows(const Sums (*rows)[kSide][kAtOnce], Sums (*to)[kAtOnce]) {
  for (int v = 0; v < kAtOnce; ++v) LCS_UNROLL
  for (int j = 0; j < kSide; ++j) {
    Sums m[kWindow], result[kSide];
    LCS_UNROLL
    for (int i = 0; i < kWindow; ++i) m[i] = rows[i][j][v];
    gather(m, result);
    LCS_UNROLL
    for (int i = 0; i < kSide; ++i)
      to[i * kSide + j][v] = (Sums)((SignedSums)(result[i] * kInverseOfNine) >> (kFactor[i] + kFactor[j]));
  }
}

// Channels that were multiplied before are added, and more are to come, or the sums are finished.
inline void finish_tile(const WinogradMultiply& p, int64_t tile, const PairFinish& finish, int piece,
                        const Sums (*rows)[kSide][kAtOnce]) {
  Sums outputs[kOutputs][kAtOnce];
  gather_rows(rows, outputs);
  const int64_t first = tile * kOutputs;
  int32_t* const sums = p.sums + first * kPairRows + piece * kPieceRows;
  for (int i = 0; p.more && i < kOutputs; ++i) LCS_UNROLL
  for (int v = 0; v < kAtOnce; ++v) outputs[i][v] += (Sums)wide_load(sums + i * kPairRows + kSums * v);
  for (int i = 0; !p.last && i < kOutputs; ++i) LCS_UNROLL
  for (int v = 0; v < kAtOnce; ++v) wide_store(sums + i * kPairRows + kSums * v, (Wide)outputs[i][v]);
  if (!p.last) return;
  for (int i = 0; i < kOutputs; i += kSide) {
    Wide whole[kSide][kAtOnce];
    LCS_UNROLL
    for (int j = 0; j < kSide; ++j) LCS_UNROLL
    for (int v = 0; v < kAtOnce; ++v)
      whole[j][v] = (Wide)(outputs[i + j][v] + (Sums)wide_load(p.start + piece * kPieceRows + kSums * v));
    finish.outputs<kSide>(first + i, piece, whole);
  }
}

template <int kTiles>
void multiply_tiles(const WinogradMultiply& p, int64_t tile, const PairFinish& finish, int piece) {
  const char* const first = p.x + tile * p.tile;
  const char* const panels =
      static_cast<const char*>(p.panel) + panel_offset(p.steps, 0, (piece - p.pieces.begin) * kAtOnce);
  Sums rows[kTiles][kWindow][kSide][kAtOnce];
  for (int i = 0; i < kWindow; ++i) {
    Sums products[kWindow][kTiles][kAtOnce];
    for (int j = 0; j < kWindow; ++j) {
      const int position = i * kWindow + j;
      if (p.last)
        prefetch_outputs(p.output, tile * kOutputs, kTiles * kOutputs, position, kWindow * kWindow, piece * kPieceRows,
                         kPieceRows);
      const char* panel = panels + position * p.panel_position;
      const char* x[kTiles];
      LCS_UNROLL
      for (int m = 0; m < kTiles; ++m) x[m] = first + m * p.tile + position * p.position;
      Wide sum[kTiles][kAtOnce];
      LCS_UNROLL
      for (int m = 0; m < kTiles; ++m) LCS_UNROLL
      for (int v = 0; v < kAtOnce; ++v) sum[m][v] = wide_zero();
      for (int64_t step = 0; step < kWordSteps * p.steps; ++step, panel += kAtOnce * sizeof(Wide)) {
        Wide w[kAtOnce];
        LCS_UNROLL
        for (int v = 0; v < kAtOnce; ++v) w[v] = wide_load(panel + sizeof(Wide) * v);
        LCS_UNROLL
        for (int m = 0; m < kTiles; ++m) {
          const Wide two = wide_broadcast(x[m] + 4 * step);
          LCS_UNROLL
          for (int v = 0; v < kAtOnce; ++v) add_dot_words(sum[m][v], two, w[v]);
        }
      }
      LCS_UNROLL
      for (int m = 0; m < kTiles; ++m) LCS_UNROLL
      for (int v = 0; v < kAtOnce; ++v) products[j][m][v] = (Sums)sum[m][v];
    }
    for (int m = 0; m < kTiles; ++m) LCS_UNROLL
    for (int v = 0; v < kAtOnce; ++v) {
      Sums of[kWindow], result[kSide];
      LCS_UNROLL
      for (int j = 0; j < kWindow; ++j) of[j] = products[j][m][v];
      gather(of, result);
      LCS_UNROLL
      for (int j = 0; j < kSide; ++j) rows[m][i][j][v] = result[j];
    }
  }
  for (int m = 0; m < kTiles; ++m) finish_tile(p, tile + m, finish, piece, rows[m]);
}

template <int... kTiles>
void multiply_of(const WinogradMultiply& p, int64_t tile, int tiles, const PairFinish& finish, int piece,
                 std::integer_sequence<int, kTiles...>) {
  static constexpr void (*kTable[])(const WinogradMultiply&, int64_t, const PairFinish&,
                                    int) = {multiply_tiles<kTiles + 1>...};
  kTable[tiles - 1](p, tile, finish, piece);
}

// A piece of the panel stays in the second-level cache over all tiles.
void multiply(const WinogradMultiply& p) {
  const PairFinish finish(p.output);
  const int64_t groups = (p.tiles + kPairTile - 1) / kPairTile;
  for (int piece = p.pieces.begin; piece < p.pieces.end; ++piece)
    for (int64_t i = 0; i < groups; ++i) {
      const int64_t tile = p.tiles * i / groups, end = p.tiles * (i + 1) / groups;
      multiply_of(p, tile, int(end - tile), finish, piece, std::make_integer_sequence<int, kPairTile>());
    }
}

}  // namespace words
