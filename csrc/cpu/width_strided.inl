// Compiled once per instruction set, after its lanes_*.inl, in an unnamed namespace inside its target region. kTiles:
// how many tiles' sums of a span fit the registers, beside its weights and a value.
constexpr int kSide = kStridedWindow, kMost = kStridedResults, kTaps = kStridedTaps, kVectors = kStridedVectors;
constexpr int kSpan = kVectors * kLanes;
constexpr int kBlock = 16;  // output channels of a block of the weight

inline Float times(float a, Float x, Float plus) { return fmadd(set1(a), x, plus); }

// G of a side's taps.
inline void spread(const Float* w, Float* to) {
  const Float even = add(w[0], w[2]), odd = add(w[1], w[3]);
  const Float third = set1(1.0f / 3), half = times(0.25f, w[2], w[0]), two = times(4.0f, w[2], w[0]);
  to[0] = w[0];
  to[1] = mul(third, add(even, odd));
  to[2] = mul(third, sub(odd, even));
  to[3] = mul(set1(-16.0f / 15), times(0.5f, times(0.25f, w[3], w[1]), half));
  to[4] = mul(set1(1.0f / 15), times(-2.0f, times(4.0f, w[3], w[1]), two));
  to[5] = w[3];
}

// B^T of a window's side.
inline void window(const Float* x, Float* to) {
  const Float a = sub(x[4], x[2]), b = sub(x[3], x[1]);
  to[0] = times(1.5f, b, add(sub(x[0], x[2]), a));
  to[1] = times(2.5f, x[3], sub(times(0.5f, x[2], x[4]), x[1]));
  to[2] = times(0.5f, x[3], add(times(-2.5f, x[2], x[4]), x[1]));
  to[3] = times(2.0f, b, a);
  to[4] = times(-0.5f, b, a);
  to[5] = times(1.5f, a, add(sub(x[5], x[3]), sub(x[1], x[3])));
}

// A^T of a side's points.
inline void results_of(const Float* m, Float* to) {
  const Float plus = add(m[1], m[2]), minus = sub(m[1], m[2]);
  to[0] = add(add(m[0], plus), add(m[3], m[4]));
  to[1] = times(0.5f, m[3], times(-2.0f, m[4], minus));
  to[2] = add(times(0.25f, m[3], times(4.0f, m[4], plus)), m[5]);
}

// Of one channel of x, that is of the remainders `down` and `right`, and a vector of output channels.
void weights_of(const StridedWeights& w, int64_t channel, int down, int right, const float* from, float* to) {
  Float rows[kSide][kTaps];
  for (int j = 0; j < kTaps; ++j) {
    Float tap[kTaps], column[kSide];
    for (int i = 0; i < kTaps; ++i) {
      const int64_t row = 2 * i + down, at = 2 * j + right;
      tap[i] = row < w.height && at < w.width ? load(from + ((row * w.width + at) * w.stored + channel) * kBlock)
                                              : set1(0.0f);
    }
    spread(tap, column);
    for (int i = 0; i < kSide; ++i) rows[i][j] = column[i];
  }
  for (int i = 0; i < kSide; ++i) {
    Float row[kSide];
    spread(rows[i], row);
    for (int j = 0; j < kSide; ++j, to += w.position) store(to, row[j]);
  }
}

void weights(const StridedWeights& w) {
  std::fill_n(w.to, kStridedPositions * w.position, 0.0f);
  for (int v = 0; v < kVectors && w.first + v * kLanes < w.outputs; ++v) {
    const int64_t first = w.first + v * kLanes;
    const float* const from = w.from + first / kBlock * w.block + first % kBlock;
    float* to = w.to + v * kLanes;
    for (int down = 0; down < 2; ++down)
      for (int64_t i = 0; i < 2 * w.channels; ++i, to += kSpan)
        w.pairs ? weights_of(w, i / 2, down, int(i % 2), from, to)
                : weights_of(w, i % w.channels, down, int(i / w.channels), from, to);
  }
}

void columns(const StridedColumns& c) {
  const int64_t floats = c.columns * c.channels;
  for (int64_t at = 0; at < floats; at += kLanes) {
    Float x[kSide], to[kSide];
    LCS_UNROLL
    for (int i = 0; i < kSide; ++i) x[i] = load(c.from + i * c.row + at);
    window(x, to);
    LCS_UNROLL
    for (int i = 0; i < kSide; ++i) store(c.to + i * floats + at, to[i]);
  }
}

void rows(const StridedRows& r) {
  for (int i = 0; i < kSide; ++i) {
    const float* from = r.from + i * r.columns * r.channels;
    float* to = r.to + i * kSide * r.position;
    for (int64_t tile = 0; tile < r.tiles; ++tile, from += kMost * r.channels)
      for (int64_t c = 0; c < r.channels; c += kLanes, to += kLanes) {
        Float x[kSide], row[kSide];
        LCS_UNROLL
        for (int j = 0; j < kSide; ++j) x[j] = load(from + j * r.channels + c);
        window(x, row);
        LCS_UNROLL
        for (int j = 0; j < kSide; ++j) store(to + j * r.position, row[j]);
      }
  }
}

// Of one position and so many tiles. Without the pragmas gcc keeps the sums in memory.
template <int kAtOnce>
void products_of(const StridedProducts& p, const float* x, const float* weight, float* to) {
  Float sum[kAtOnce][kVectors];
  const int64_t tile = p.tile;
#pragma GCC unroll 32
  for (int t = 0; t < kAtOnce; ++t)
#pragma GCC unroll 32
    for (int v = 0; v < kVectors; ++v) sum[t][v] = set1(0.0f);
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

template <int... kAtOnce>
void products_of_any(const StridedProducts& p, std::integer_sequence<int, kAtOnce...>) {
  static constexpr decltype(&products_of<1>) kTable[] = {products_of<kAtOnce + 1>...};
  for (int i = 0; i < kStridedPositions; ++i) {
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

void products(const StridedProducts& p) { products_of_any(p, std::make_integer_sequence<int, kTiles>()); }

void results(const StridedResults& r) {
  const Float floor = set1(r.relu ? 0.0f : -__builtin_inff());
  for (int v = 0; v < kVectors; ++v) {
    const Float scale = load(r.scale + v * kLanes), bias = load(r.bias + v * kLanes);
    const float* from = r.from + v * kLanes;
    float* to = r.to + v * kLanes;
    for (int64_t tile = 0; tile < r.tiles; ++tile, from += kSpan, to += kMost * kSpan) {
      Float side[kMost][kSide];
      LCS_UNROLL
      for (int j = 0; j < kSide; ++j) {
        Float m[kSide], column[kMost];
        LCS_UNROLL
        for (int i = 0; i < kSide; ++i) m[i] = load(from + (i * kSide + j) * r.position);
        results_of(m, column);
        LCS_UNROLL
        for (int i = 0; i < kMost; ++i) side[i][j] = column[i];
      }
      LCS_UNROLL
      for (int i = 0; i < kMost; ++i) {
        Float row[kMost];
        results_of(side[i], row);
        LCS_UNROLL
        for (int j = 0; j < kMost; ++j) store(to + i * r.row + j * kSpan, raised_to(fmadd(row[j], scale, bias), floor));
      }
    }
  }
}

WidthStridedKernels table() { return {kLanes, weights, columns, rows, products, results}; }
