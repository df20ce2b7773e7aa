// Compiled once per instruction set, after its lanes_*.inl, in an unnamed namespace inside its target region. kTiles:
// how many tiles' sums of a span fit the registers, beside its weights and a value.
constexpr int kVectors = kWinogradVectors, kSpan = kVectors * kLanes;
constexpr int kResults = kWinogradResults;
constexpr int kBlock = 16;  // output channels of a block of the weight

inline Float times(float a, Float x, Float plus) { return fmadd(set1(a), x, plus); }

// Row i of G times taps.
template <int kTaps>
inline Float spread(int i, const Float (&w)[kTaps]) {
  if (i == 0) return w[0];
  if (i == winograd_window(kTaps) - 1) return w[kTaps - 1];
  constexpr float kPoints[] = {0, 1, -1, 0.5f, -2, -0.5f};
  Float to = w[kTaps - 1];
  LCS_UNROLL
  for (int k = kTaps - 2; k >= 0; --k) to = times(kPoints[i], to, w[k]);
  return to;
}

// B^T of a window's side.
inline void window(const Float (&x)[6], Float* to) {
  const Float a = sub(x[4], x[2]), b = sub(x[3], x[1]);
  to[0] = times(1.5f, b, add(sub(x[0], x[2]), a));
  to[1] = times(2.5f, x[3], sub(times(0.5f, x[2], x[4]), x[1]));
  to[2] = times(0.5f, x[3], add(times(-2.5f, x[2], x[4]), x[1]));
  to[3] = times(2.0f, b, a);
  to[4] = times(-0.5f, b, a);
  to[5] = times(1.5f, a, add(sub(x[5], x[3]), sub(x[1], x[3])));
}
inline void window(const Float (&x)[7], Float* to) {
  Float pair[6];  // what p + 2 makes of x, a factor of all rows but that of -2
  LCS_UNROLL
  for (int i = 0; i < 6; ++i) pair[i] = times(2.0f, x[i], x[i + 1]);
  const Float one = times(-0.25f, pair[1], pair[3]), next_one = times(-0.25f, pair[2], pair[4]),
              half = mul(set1(0.5f), sub(pair[3], pair[1])), next_half = sub(pair[4], pair[2]);
  to[0] = times(0.25f, pair[0], times(-1.25f, pair[2], pair[4]));
  to[1] = add(next_one, one);
  to[2] = sub(next_one, one);
  to[3] = add(next_half, half);
  to[4] = times(0.25f, x[1], times(-1.25f, x[3], x[5]));
  to[5] = sub(next_half, half);
  to[6] = times(0.25f, pair[1], times(-1.25f, pair[3], pair[5]));
}

// A^T of a side's points.
inline void results_of(const Float (&m)[6], Float* to) {
  const Float third = set1(1.0f / 3), even = mul(third, sub(m[1], m[2])), odd = mul(third, add(m[1], m[2]));
  const auto powers = [&](Float from, float half, float two) {
    return times(two * (1.0f / 15), m[4], times(half * (-16.0f / 15), m[3], from));
  };
  to[0] = powers(add(m[0], even), 1, 1);
  to[1] = powers(odd, 0.5f, -2);
  to[2] = powers(even, 0.25f, 4);
  to[3] = powers(add(odd, m[5]), 0.125f, -8);
}
inline void results_of(const Float (&m)[7], Float* to) {
  const Float one = mul(set1(2.0f / 9), m[1]), half = mul(set1(-16.0f / 15), m[3]);
  const Float even = times(2.0f / 3, m[2], one), odd = times(-2.0f / 3, m[2], one),
              even_half = times(-16.0f / 9, m[5], half), odd_half = times(16.0f / 9, m[5], half);
  const auto last = [&](float two, Float from) { return times(two * (-2.0f / 45), m[4], from); };
  to[0] = last(1, add(times(2.0f, m[0], even), even_half));
  to[1] = last(-2, times(0.5f, odd_half, odd));
  to[2] = last(4, times(0.25f, even_half, even));
  to[3] = last(-8, times(0.125f, odd_half, add(odd, m[6])));
}

// G w G^T of the taps [column][row] of a channel.
template <int kTaps>
inline void spread_both(const Float (&taps)[kTaps][kTaps], float* to, int64_t position) {
  constexpr int kSide = winograd_window(kTaps);
  LCS_UNROLL
  for (int i = 0; i < kSide; ++i) {
    Float row[kTaps];
    LCS_UNROLL
    for (int j = 0; j < kTaps; ++j) row[j] = spread<kTaps>(i, taps[j]);
    LCS_UNROLL
    for (int j = 0; j < kSide; ++j) store(to + (i * kSide + j) * position, spread<kTaps>(j, row));
  }
}

// Calls each(weight, to) for the vectors of output channels of a span that there are; the others become zeros.
template <int kTaps, class Each>
inline void for_vectors(const WinogradWeights& w, int64_t channel, const Each& each) {
  for (int v = 0; v < kVectors; ++v) {
    const int64_t first = w.first + v * kLanes;
    float* const to = w.to + channel * kSpan + v * kLanes;
    if (first < w.outputs)
      each(w.from + first / kBlock * w.block + first % kBlock, to);
    else
      for (int i = 0; i < winograd_positions(kTaps); ++i) store(to + i * w.position, set1(0.0f));
  }
}

void weights(const WinogradWeights& w) {
  const int64_t tap = w.stored * kBlock;
  for (int64_t c = 0; c < w.channels; ++c)
    for_vectors<3>(w, c, [&](const float* from, float* to) {
      Float taps[3][3];
      LCS_UNROLL
      for (int i = 0; i < 9; ++i) taps[i % 3][i / 3] = load(from + i * tap + c * kBlock);
      spread_both<3>(taps, to, w.position);
    });
}

void split_weights(const WinogradSplitWeights& s) {
  constexpr int kTaps = 4;
  const WinogradWeights& w = s.of;
  for (int64_t i = 0; i < 4 * w.channels; ++i) {
    const int64_t at = i % (2 * w.channels), down = i / (2 * w.channels), right = s.pairs ? at % 2 : at / w.channels,
                  channel = s.pairs ? at / 2 : at % w.channels;
    for_vectors<kTaps>(w, i, [&](const float* from, float* to) {
      Float taps[kTaps][kTaps];
      for (int j = 0; j < kTaps * kTaps; ++j) {
        const int64_t row = 2 * (j / kTaps) + down, column = 2 * (j % kTaps) + right;
        taps[j % kTaps][j / kTaps] = row < s.height && column < s.width
                                         ? load(from + ((row * s.width + column) * w.stored + channel) * kBlock)
                                         : set1(0.0f);
      }
      spread_both<kTaps>(taps, to, w.position);
    });
  }
}

template <int kTaps>
void columns(const WinogradColumns& c) {
  constexpr int kSide = winograd_window(kTaps);
  for (int64_t at = 0; at < c.floats; at += kLanes) {
    Float x[kSide], to[kSide];
    LCS_UNROLL
    for (int i = 0; i < kSide; ++i) x[i] = load(c.rows[i] + at);
    window(x, to);
    LCS_UNROLL
    for (int i = 0; i < kSide; ++i) store(c.to + i * c.row + at, to[i]);
  }
}

template <int kTaps>
void rows(const WinogradRows& r) {
  constexpr int kSide = winograd_window(kTaps);
  for (int i = 0; i < kSide; ++i) {
    const float* from = r.from + i * r.row;
    float* to = r.to + i * kSide * r.position;
    for (int64_t tile = 0; tile < r.tiles; ++tile, from += kResults * r.column, to += r.tile)
      for (int64_t c = 0; c < r.channels; c += kLanes) {
        Float x[kSide], row[kSide];
        LCS_UNROLL
        for (int j = 0; j < kSide; ++j) x[j] = load(from + j * r.column + c);
        window(x, row);
        LCS_UNROLL
        for (int j = 0; j < kSide; ++j) store(to + j * r.position + c, row[j]);
      }
  }
}

// Of one position and so many tiles. Without the pragmas gcc keeps the sums in memory.
template <int kAtOnce>
void products_of(const WinogradProducts& p, const float* x, const float* weight, float* to) {
  Float sum[kAtOnce][kVectors];
  const int64_t tile = p.tile;
#pragma GCC unroll 32
  for (int t = 0; t < kAtOnce; ++t)
#pragma GCC unroll 32
    for (int v = 0; v < kVectors; ++v) sum[t][v] = p.first ? set1(0.0f) : load(to + t * kSpan + v * kLanes);
  for (int64_t c = 0; c < p.channels; ++c, ++x, weight += kSpan) {
    Float w[kVectors];
#pragma GCC unroll 32
    for (int v = 0; v < kVectors; ++v) w[v] = load(weight + v * kLanes);
#pragma GCC unroll 32
    for (int t = 0; t < kAtOnce; ++t) {
      const Float value = set1(x[t * tile]);
#pragma GCC unroll 32
      for (int v = 0; v < kVectors; ++v) sum[t][v] = fmadd(value, w[v], sum[t][v]);
    }
  }
#pragma GCC unroll 32
  for (int t = 0; t < kAtOnce; ++t)
#pragma GCC unroll 32
    for (int v = 0; v < kVectors; ++v) store(to + t * kSpan + v * kLanes, sum[t][v]);
}

template <int kTaps, int... kAtOnce>
void products_of_any(const WinogradProducts& p, std::integer_sequence<int, kAtOnce...>) {
  static constexpr decltype(&products_of<1>) kTable[] = {products_of<kAtOnce + 1>...};
  for (int i = 0; i < winograd_positions(kTaps); ++i) {
    const float* const x = p.x + i * p.x_position;
    const float* const weight = p.weight + i * p.weight_position;
    float* const to = p.to + i * p.position;
    for (int64_t tile = 0, n; tile < p.tiles; tile += n) {
      const int64_t left = p.tiles - tile;  // the last two share evenly
      n = left >= 2 * kTiles ? kTiles : left > kTiles ? (left + 1) / 2 : left;
      kTable[n - 1](p, x + tile * p.tile, weight, to + tile * kSpan);
    }
  }
}

template <int kTaps>
void products(const WinogradProducts& p) {
  products_of_any<kTaps>(p, std::make_integer_sequence<int, kTiles>());
}

template <int kTaps, bool kNorm>
void results_of_all(const WinogradResults& r) {
  constexpr int kSide = winograd_window(kTaps);
  const Float floor = set1(r.relu ? 0.0f : -__builtin_inff());
  for (int v = 0; v < kVectors; ++v) {
    const Float mean = kNorm ? load(r.mean + v * kLanes) : set1(0.0f), scale = load(r.scale + v * kLanes),
                bias = load(r.bias + v * kLanes);
    const auto ended = [&](Float y) {  // by a norm: rounded as often as it is by itself
      return raised_to(kNorm ? add(mul(sub(y, mean), scale), bias) : fmadd(y, scale, bias), floor);
    };
    const float* from = r.from + v * kLanes;
    float* to = r.to + v * kLanes;
    for (int64_t tile = 0; tile < r.tiles; ++tile, from += kSpan, to += kResults * r.column) {
      Float side[kResults][kSide];
      LCS_UNROLL
      for (int j = 0; j < kSide; ++j) {
        Float m[kSide], column[kResults];
        LCS_UNROLL
        for (int i = 0; i < kSide; ++i) m[i] = load(from + (i * kSide + j) * r.position);
        results_of(m, column);
        LCS_UNROLL
        for (int i = 0; i < kResults; ++i) side[i][j] = column[i];
      }
      LCS_UNROLL
      for (int i = 0; i < kResults; ++i) {
        Float row[kResults];
        results_of(side[i], row);
        LCS_UNROLL
        for (int j = 0; j < kResults; ++j) store(to + i * r.row + j * r.column, ended(row[j]));
      }
    }
  }
}

template <int kTaps>
void results(const WinogradResults& r) {
  r.mean ? results_of_all<kTaps, true>(r) : results_of_all<kTaps, false>(r);
}

template <int kTaps>
WinogradSide side() {
  return {columns<kTaps>, rows<kTaps>, products<kTaps>, results<kTaps>};
}

WidthWinogradKernels table() { return {kLanes, weights, split_weights, side<3>(), side<4>()}; }
