// Compiled once per instruction set, after its lanes_*.inl, in an unnamed namespace inside its target region. kOutputs:
// how many channels' sums of a span fit the registers, beside a span of x and a value.
constexpr int kVectors = kWinogradVectors, kSpan = kVectors * kLanes, kResults = kWinogradResults, kTaps = 3,
              kSide = winograd_window(kTaps);

inline Float times(float a, Float x, Float plus) { return fmadd(set1(a), x, plus); }

// A times the gradients of a side's results.
inline void spread_results(const Float (&g)[kResults], Float* to) {
  const Float third = set1(1.0f / 3), even = mul(third, add(g[0], g[2])), odd = mul(third, add(g[1], g[3]));
  const auto powers = [&](float first, float ratio) {
    Float sum = mul(set1(first * ratio * ratio * ratio), g[3]);
    sum = times(first * ratio * ratio, g[2], sum);
    return times(first, g[0], times(first * ratio, g[1], sum));
  };
  to[0] = g[0];
  to[1] = add(odd, even);
  to[2] = sub(odd, even);
  to[3] = powers(-16.0f / 15, 0.5f);
  to[4] = powers(1.0f / 15, -2);
  to[5] = g[3];
}

// G^T of a side's points.
inline void taps_of(const Float (&m)[kSide], Float* to) {
  const Float sum = add(m[1], m[2]);
  to[0] = add(add(m[0], sum), add(m[3], m[4]));
  to[1] = times(-2.0f, m[4], times(0.5f, m[3], sub(m[1], m[2])));
  to[2] = times(4.0f, m[4], times(0.25f, m[3], add(sum, m[5])));
}

void columns(const WinogradColumns& c) {
  for (int64_t at = 0; at < c.floats; at += kLanes) {
    Float g[kResults], to[kSide];
    LCS_UNROLL
    for (int i = 0; i < kResults; ++i) g[i] = load(c.rows[i] + at);
    spread_results(g, to);
    LCS_UNROLL
    for (int i = 0; i < kSide; ++i) store(c.to + i * c.row + at, to[i]);
  }
}

void rows(const WinogradRows& r) {
  for (int i = 0; i < kSide; ++i) {
    const float* from = r.from + i * r.row;
    float* to = r.to + i * kSide * r.position;
    for (int64_t tile = 0; tile < r.tiles; ++tile, from += kResults * r.column, to += r.tile)
      for (int64_t c = 0; c < r.channels; c += kLanes) {
        Float g[kResults], row[kSide];
        LCS_UNROLL
        for (int j = 0; j < kResults; ++j) g[j] = load(from + j * r.column + c);
        spread_results(g, row);
        LCS_UNROLL
        for (int j = 0; j < kSide; ++j) store(to + j * r.position + c, row[j]);
      }
  }
}

// Of one position and so many channels of grad. Without the pragmas gcc keeps the sums in memory.
template <int kAtOnce>
void products_of(const GradientProducts& p, const float* grad, const float* x, float* to) {
  Float sum[kAtOnce][kVectors];
#pragma GCC unroll 32
  for (int o = 0; o < kAtOnce; ++o)
#pragma GCC unroll 32
    for (int v = 0; v < kVectors; ++v) sum[o][v] = set1(0.0f);
  for (int64_t tile = 0; tile < p.tiles; ++tile, grad += p.grad_tile, x += p.x_tile) {
    Float values[kVectors];
#pragma GCC unroll 32
    for (int v = 0; v < kVectors; ++v) values[v] = load(x + v * kLanes);
#pragma GCC unroll 32
    for (int o = 0; o < kAtOnce; ++o) {
      const Float factor = set1(grad[o]);
#pragma GCC unroll 32
      for (int v = 0; v < kVectors; ++v) sum[o][v] = fmadd(factor, values[v], sum[o][v]);
    }
  }
#pragma GCC unroll 32
  for (int o = 0; o < kAtOnce; ++o)
#pragma GCC unroll 32
    for (int v = 0; v < kVectors; ++v) {
      float* const at = to + o * kSpan + v * kLanes;
      store(at, p.first ? sum[o][v] : add(load(at), sum[o][v]));
    }
}

template <int... kAtOnce>
void products_of_any(const GradientProducts& p, std::integer_sequence<int, kAtOnce...>) {
  static constexpr decltype(&products_of<1>) kTable[] = {products_of<kAtOnce + 1>...};
  for (int i = 0; i < kSide * kSide; ++i) {
    const float* const grad = p.grad + i * p.grad_position;
    const float* const x = p.x + i * p.x_position;
    float* const to = p.to + i * p.position;
    for (int64_t o = 0, n; o < p.outputs; o += n) {
      const int64_t left = p.outputs - o;  // the last two share evenly
      n = left >= 2 * kOutputs ? kOutputs : left > kOutputs ? (left + 1) / 2 : left;
      kTable[n - 1](p, grad + o, x, to + o * kSpan);
    }
  }
}

void products(const GradientProducts& p) { products_of_any(p, std::make_integer_sequence<int, kOutputs>()); }

void results(const GradientResults& r) {
  for (int64_t o = 0; o < r.outputs; ++o) {
    float taps[kTaps * kTaps][kSpan];
    for (int v = 0; v < kVectors; ++v) {
      const float* const from = r.from + o * kSpan + v * kLanes;
      Float rows[kTaps][kSide];
      LCS_UNROLL
      for (int j = 0; j < kSide; ++j) {
        Float m[kSide], column[kTaps];
        LCS_UNROLL
        for (int i = 0; i < kSide; ++i) m[i] = load(from + (i * kSide + j) * r.position);
        taps_of(m, column);
        LCS_UNROLL
        for (int i = 0; i < kTaps; ++i) rows[i][j] = column[i];
      }
      LCS_UNROLL
      for (int i = 0; i < kTaps; ++i) {
        Float row[kTaps];
        taps_of(rows[i], row);
        LCS_UNROLL
        for (int j = 0; j < kTaps; ++j) store(taps[i * kTaps + j] + v * kLanes, row[j]);
      }
    }
    float* const to = r.to + o * r.row;
    for (int64_t c = 0; c < r.inputs; ++c)
      for (int k = 0; k < kTaps * kTaps; ++k) to[c * kTaps * kTaps + k] = taps[k][c];
  }
}

WidthGradientKernels table() { return {kLanes, columns, rows, products, results}; }
