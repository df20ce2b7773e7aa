// Compiled once per instruction set, after its lanes_*.inl, in an unnamed namespace inside its target region.
// each_tap(from, tap, channel, first, to) loads the 9 taps of an input channel for kLanes output channels of a block,
// put(to, x) rounds to what `to` points to.
constexpr int kSide = kWinograd6Window, kMost = kWinograd6Results;
constexpr int kBlock = 16;  // output channels of a block

// Where the point i of a tile of so many results is among the 8.
constexpr int place(int results, int i) { return i == results + 1 ? kSide - 1 : i; }

inline Float times(float a, Float x, Float plus) { return fmadd(set1(a), x, plus); }

// B^T of a window's side.
template <int kResults>
inline void window(const Float* x, Float* to) {
  if constexpr (kResults == 2) {
    to[0] = sub(x[0], x[2]);
    to[1] = add(x[1], x[2]);
    to[2] = sub(x[2], x[1]);
    to[3] = sub(x[3], x[1]);
  } else if constexpr (kResults == 4) {
    const Float even = sub(x[4], x[2]), odd = sub(x[3], x[1]);
    const Float a = times(-4.0f, x[2], x[4]), b = times(-4.0f, x[1], x[3]);
    to[0] = times(4.0f, sub(x[0], x[2]), even);
    to[1] = add(a, b);
    to[2] = sub(a, b);
    to[3] = times(2.0f, odd, even);
    to[4] = times(-2.0f, odd, even);
    to[5] = times(-4.0f, odd, sub(x[5], x[3]));
  } else {
    Float even[3], odd[3];  // of the points 1, 2 and 1/2
    LCS_UNROLL
    for (int i = 0; i < 2; ++i) {
      Float* const half = i == 0 ? even : odd;
      const Float a = x[2 - i], b = x[4 - i], c = x[6 - i];
      half[0] = times(-4.25f, b, add(a, c));
      half[1] = times(0.25f, a, times(-1.25f, b, c));
      half[2] = times(4.0f, a, times(-5.0f, b, c));
    }
    to[0] = times(5.25f, sub(x[4], x[2]), sub(x[0], x[6]));
    to[1] = add(even[0], odd[0]);
    to[2] = sub(even[0], odd[0]);
    to[3] = times(2.0f, odd[1], even[1]);
    to[4] = times(-2.0f, odd[1], even[1]);
    to[5] = times(0.5f, odd[2], even[2]);
    to[6] = times(-0.5f, odd[2], even[2]);
    to[7] = times(5.25f, sub(x[3], x[5]), sub(x[7], x[1]));
  }
}

// 90 A^T of a side's points.
template <int kResults>
inline void results(const Float* m, Float* to) {
  const Float plus = add(m[1], m[2]), minus = sub(m[1], m[2]);
  if constexpr (kResults == 2) {
    to[0] = times(90.0f, m[0], mul(set1(45.0f), plus));
    to[1] = times(90.0f, m[3], mul(set1(45.0f), minus));
  } else if constexpr (kResults == 4) {
    const Float a = mul(set1(-15.0f), plus), b = mul(set1(-15.0f), minus);
    const Float plus2 = mul(set1(3.75f), add(m[3], m[4])), minus2 = mul(set1(7.5f), sub(m[3], m[4]));
    to[0] = times(22.5f, m[0], add(a, plus2));
    to[1] = add(b, minus2);
    to[2] = times(4.0f, plus2, a);
    to[3] = times(90.0f, m[5], times(4.0f, minus2, b));
  } else {
    const Float a = mul(set1(-20.0f), plus), b = mul(set1(-20.0f), minus);
    const Float plus2 = add(m[3], m[4]), minus2 = sub(m[3], m[4]), plus3 = add(m[5], m[6]), minus3 = sub(m[5], m[6]);
    to[0] = times(90.0f, m[0], times(16.0f, plus3, add(a, plus2)));
    to[1] = times(8.0f, minus3, times(2.0f, minus2, b));
    to[2] = times(4.0f, add(plus2, plus3), a);
    to[3] = times(2.0f, minus3, times(8.0f, minus2, b));
    to[4] = times(16.0f, plus2, add(a, plus3));
    to[5] = times(90.0f, m[7], times(0.5f, minus3, times(32.0f, minus2, b)));
  }
}

// G of a side's taps.
inline void spread(const Float* w, Float* to) {
  const Float outer = add(w[0], w[2]), two = times(4.0f, w[2], w[0]), half = times(4.0f, w[0], w[2]);
  to[0] = w[0];
  to[1] = add(outer, w[1]);
  to[2] = sub(outer, w[1]);
  to[3] = times(2.0f, w[1], two);
  to[4] = times(-2.0f, w[1], two);
  to[5] = times(2.0f, w[1], half);
  to[6] = times(-2.0f, w[1], half);
  to[7] = w[2];
}

void weights(const WidthWinograd6Weights& w) {
  for (int64_t c = 0; c < w.channels; ++c)
    for (int first = 0; first < kBlock; first += kLanes) {
      Float taps[9], rows[kSide][3];
      each_tap(w.from, w.tap, c, first, taps);
      LCS_UNROLL
      for (int j = 0; j < 3; ++j) {
        const Float column[3] = {taps[j], taps[3 + j], taps[6 + j]};
        Float to[kSide];
        spread(column, to);
        LCS_UNROLL
        for (int i = 0; i < kSide; ++i) rows[i][j] = to[i];
      }
      float* at = w.to + c * kBlock + first;
      LCS_UNROLL
      for (int i = 0; i < kSide; ++i, at += kSide * w.position) {
        Float to[kSide];
        spread(rows[i], to);
        LCS_UNROLL
        for (int j = 0; j < kSide; ++j) store(at + j * w.position, to[j]);
      }
    }
}

// Of the columns of a window, to those of `side`.
template <class From, int kResults>
void input_columns(const WidthWinograd6Input& in, int64_t channel, float (*side)[kSide][kLanes]) {
  for (int j = 0; j < in.width + 2; ++j) {
    Float x[kResults + 2], to[kResults + 2];
    if (j < in.first || j >= in.last) {
      LCS_UNROLL
      for (int i = 0; i < kResults + 2; ++i) store(side[i][j], set1(0.0f));
      continue;
    }
    LCS_UNROLL
    for (int i = 0; i < kResults + 2; ++i)
      x[i] = load(static_cast<const From*>(in.rows[i]) + (in.left + j) * in.steps[i] + channel);
    window<kResults>(x, to);
    LCS_UNROLL
    for (int i = 0; i < kResults + 2; ++i) store(side[i][j], to[i]);
  }
}

// Of the rows of `side`, that of a tile of `height` results.
template <int kResults>
void input_rows(const float (*side)[kSide][kLanes], int height, float* to, int64_t position) {
  for (int i = 0; i < height + 2; ++i) {
    Float x[kResults + 2], row[kResults + 2];
    LCS_UNROLL
    for (int j = 0; j < kResults + 2; ++j) x[j] = load(side[i][j]);
    window<kResults>(x, row);
    float* const at = to + place(height, i) * kSide * position;
    LCS_UNROLL
    for (int j = 0; j < kResults + 2; ++j) store(at + place(kResults, j) * position, row[j]);
  }
}

template <class From>
void input_of(const WidthWinograd6Input& in) {
  static constexpr decltype(&input_columns<From, 2>) kColumns[] = {input_columns<From, 2>, input_columns<From, 4>,
                                                                   input_columns<From, 6>};
  static constexpr decltype(&input_rows<2>) kRows[] = {input_rows<2>, input_rows<4>, input_rows<6>};
  const auto columns = kColumns[in.height / 2 - 1];
  const auto rows = kRows[in.width / 2 - 1];
  alignas(64) float side[kSide][kSide][kLanes];
  int64_t c = in.begin;
  float* to = in.to;
  for (; c + kLanes <= in.end; c += kLanes, to += kLanes) {
    columns(in, c, side);
    rows(side, in.height, to, in.position);
  }
  if (c == in.end) return;
  From rest[kSide][kSide][kLanes] = {};
  WidthWinograd6Input last = in;
  last.left = 0;
  for (int i = 0; i < in.height + 2; ++i) {
    for (int j = in.first; j < in.last; ++j) {
      const From* const from = static_cast<const From*>(in.rows[i]) + (in.left + j) * in.steps[i];
      std::copy(from + c, from + in.end, rest[i][j]);
    }
    last.rows[i] = rest[i], last.steps[i] = kLanes;
  }
  columns(last, 0, side);
  rows(side, in.height, to, in.position);
}

void input(const WidthWinograd6Input& in) {
  in.dtype == DType::bfloat16 ? input_of<BFloat16>(in) : input_of<float>(in);
}

// Of the points' rows, to the columns of `side`.
template <int kResults>
void output_rows(const float* sums, int64_t position, int height, float (*side)[kSide][kLanes]) {
  for (int i = 0; i < height + 2; ++i) {
    Float m[kResults + 2], row[kResults];
    const float* const at = sums + place(height, i) * kSide * position;
    LCS_UNROLL
    for (int j = 0; j < kResults + 2; ++j) m[j] = load(at + place(kResults, j) * position);
    results<kResults>(m, row);
    LCS_UNROLL
    for (int j = 0; j < kResults; ++j) store(side[j][i], row[j]);
  }
}

template <class To, int kResults>
void output_columns(const WidthWinograd6Output& out, const float (*side)[kSide][kLanes], int channel) {
  const Float floor = set1(out.relu ? 0.0f : -__builtin_inff()), whole = set1(1.0f / (90 * 90));
  const Float scale = load(out.scale + channel), bias = load(out.bias + channel);
  for (int j = 0; j < out.columns; ++j) {
    Float m[kResults + 2], column[kResults];
    LCS_UNROLL
    for (int i = 0; i < kResults + 2; ++i) m[i] = load(side[j][i]);
    results<kResults>(m, column);
    LCS_UNROLL
    for (int i = 0; i < kResults; ++i)
      if (i < out.rows)
        put(static_cast<To*>(out.to[i]) + j * out.step + channel,
            raised_to(fmadd(mul(column[i], whole), scale, bias), floor));
  }
}

template <class To>
void output_of(const WidthWinograd6Output& out) {
  static constexpr decltype(&output_rows<2>) kRows[] = {output_rows<2>, output_rows<4>, output_rows<6>};
  static constexpr decltype(&output_columns<To, 2>) kColumns[] = {output_columns<To, 2>, output_columns<To, 4>,
                                                                  output_columns<To, 6>};
  alignas(64) float side[kMost][kSide][kLanes];
  for (int channel = 0; channel < out.vectors * kLanes; channel += kLanes) {
    kRows[out.width / 2 - 1](out.sums + channel, out.position, out.height, side);
    kColumns[out.height / 2 - 1](out, side, channel);
  }
}

void output(const WidthWinograd6Output& out) {
  out.dtype == DType::bfloat16 ? output_of<BFloat16>(out) : output_of<float>(out);
}
