// Compiled once per instruction set, after its lanes, in an unnamed namespace inside its target region.
constexpr int kVectors = 4;  // of sums at once
constexpr int kRows = 4;     // of a weight at once

// Of channels from c on, so many vectors; `kNormed`: with a scale, a shift and ReLU.
template <int kCount, bool kNormed>
void sums_of(const PositionSums& s, int64_t c) {
  Float sum[kCount], scale[kCount], shift[kCount];
  const Float floor = set1(s.relu ? 0.0f : -__builtin_inff());
  for (int v = 0; v < kCount; ++v) {
    sum[v] = set1(0.0f);
    scale[v] = kNormed ? load(s.scale + c + v * kLanes) : sum[v];
    shift[v] = kNormed ? load(s.shift + c + v * kLanes) : sum[v];
  }
  for (int64_t i = 0; i < s.positions; ++i)
    for (int v = 0; v < kCount; ++v) {
      const Float x = load(s.x + i * s.stride + c + v * kLanes);
      sum[v] = add(sum[v], kNormed ? raised_to(fmadd(x, scale[v], shift[v]), floor) : x);
    }
  for (int v = 0; v < kCount; ++v) store(s.y + c + v * kLanes, sum[v]);
}

template <bool kNormed>
void sums_of(const PositionSums& s) {
  int64_t c = 0;
  for (; c + kVectors * kLanes <= s.channels; c += kVectors * kLanes) sums_of<kVectors, kNormed>(s, c);
  for (; c + kLanes <= s.channels; c += kLanes) sums_of<1, kNormed>(s, c);
  for (; c < s.channels; ++c) {
    s.y[c] = 0.0f;
    for (int64_t i = 0; i < s.positions; ++i) {
      const float x = s.x[i * s.stride + c], y = kNormed ? x * s.scale[c] + s.shift[c] : x;
      s.y[c] += kNormed && s.relu && y < 0.0f ? 0.0f : y;
    }
  }
}

void sums(const PositionSums& s) { s.scale ? sums_of<true>(s) : sums_of<false>(s); }

template <int kCount>
void dense_rows(const DenseRows& d, int64_t row) {
  const float* const weight = d.weight + row * d.columns;
  for (int64_t m = 0; m < d.n; ++m) {
    const float* const x = d.x + m * d.columns;
    Float sum[kCount];
    for (int r = 0; r < kCount; ++r) sum[r] = set1(0.0f);
    int64_t c = 0;
    for (; c + kLanes <= d.columns; c += kLanes) {
      const Float some = load(x + c);
      for (int r = 0; r < kCount; ++r) sum[r] = fmadd(load(weight + r * d.columns + c), some, sum[r]);
    }
    for (int r = 0; r < kCount; ++r) {
      float whole = reduce(sum[r]);
      for (int64_t i = c; i < d.columns; ++i) whole += weight[r * d.columns + i] * x[i];
      if (d.bias) whole += d.bias[row + r];
      d.y[m * d.y_stride + row + r] = d.relu && whole < 0.0f ? 0.0f : whole;
    }
  }
}

void dense(const DenseRows& d) {
  int64_t row = 0;
  for (; row + kRows <= d.rows; row += kRows) dense_rows<kRows>(d, row);
  for (; row < d.rows; ++row) dense_rows<1>(d, row);
}
