// Compiled once per instruction set, after its lanes_*.inl and blend.inl, in an unnamed namespace inside its target
// region. All is computed on rows of 16 elements, and summed in up to four rows, so that every instruction set rounds
// alike.
constexpr int kRow = int(kNormRow), kWide = kRow / kLanes, kSums = 4;
#define LCS_INLINE __attribute__((always_inline))

struct Row {
  Float part[kWide];
};

template <class Step>
LCS_INLINE inline Row each(Step step) {
  Row row;
  for (int v = 0; v < kWide; ++v) row.part[v] = step(v);
  return row;
}
LCS_INLINE inline Row all(float x) {
  return each([&](int) LCS_INLINE { return set1(x); });
}
LCS_INLINE inline Row operator+(const Row& a, const Row& b) {
  return each([&](int v) LCS_INLINE { return add(a.part[v], b.part[v]); });
}
LCS_INLINE inline Row operator-(const Row& a, const Row& b) {
  return each([&](int v) LCS_INLINE { return sub(a.part[v], b.part[v]); });
}
LCS_INLINE inline Row operator*(const Row& a, const Row& b) {
  return each([&](int v) LCS_INLINE { return mul(a.part[v], b.part[v]); });
}
// a, and 0 where `by` is not positive.
LCS_INLINE inline Row where_positive(const Row& by, const Row& a) {
  return each([&](int v) LCS_INLINE { return where(positive(by.part[v]), a.part[v]); });
}
LCS_INLINE inline Row clamped(const Row& a) {
  return each([&](int v) LCS_INLINE { return raised_to(a.part[v], set1(0.0f)); });
}
// a where `bits` are set, else b.
LCS_INLINE inline Row chosen(uint32_t bits, const Row& a, const Row& b) {
  return each([&](int v) LCS_INLINE { return choose(from_bits(bits >> (v * kLanes)), a.part[v], b.part[v]); });
}
template <class E>
LCS_INLINE inline Row row_at(const E* p) {
  return each([&](int v) LCS_INLINE { return load(p + v * kLanes); });
}
template <class E>
LCS_INLINE inline Row rounded_row(const Row& a) {
  return each([&](int v) LCS_INLINE { return rounded<E>(a.part[v]); });
}
template <class E>
LCS_INLINE inline void put(E* p, const Row& a) {
  for (int v = 0; v < kWide; ++v) store(p + v * kLanes, a.part[v]);
}

// In a tree, by halves.
LCS_INLINE inline Float halved(Row a) {
  for (int n = kWide / 2; n >= 1; n /= 2)
    for (int v = 0; v < n; ++v) a.part[v] = add(a.part[v], a.part[v + n]);
  return a.part[0];
}
inline float total(const Row& a) { return reduce(halved(a)); }

// The total of each of 16 rows, side by side.
inline Row totals(const float* rows) {
  return each([&](int v) LCS_INLINE {
    Float of[kLanes];
    for (int i = 0; i < kLanes; ++i) of[i] = halved(row_at(rows + (v * kLanes + i) * kRow));
    return reduce_each(of);
  });
}

struct Sums {
  Row part[kSums];

  Sums() {
    for (Row& row : part) row = all(0.0f);
  }
  Row row() const { return (part[0] + part[2]) + (part[1] + part[3]); }
};

// Which elements of a row count.
struct Whole {
  LCS_INLINE Row operator()(const Row& a) const { return a; }
};
struct Part {
  uint32_t bits;
  LCS_INLINE Row operator()(const Row& a) const {
    return each([&](int v) LCS_INLINE { return where(from_bits(bits >> (v * kLanes)), a.part[v]); });
  }
};

// `n` elements, of which a row can be read even where they are fewer.
template <class E>
class Readable {
 public:
  Readable(const E* p, int64_t n) : p_(n < kRow ? few_ : p) {
    if (n < kRow) copy(few_, p, n);
  }
  Readable(const Readable&) = delete;
  operator const E*() const { return p_; }

 private:
  E few_[kRow] = {};
  const E* p_;
};

// Calls step(i, counts) for rows that cover the elements from i to n, each counted once. What is left of a whole number
// of rows counts at the end of the last 16 elements, or at the start of fewer.
template <class Step>
LCS_INLINE inline void scan_rest(int64_t i, int64_t n, Step step) {
  for (; i + kRow <= n; i += kRow) step(i, Whole{});
  const uint32_t ones = (1u << (n - i)) - 1;
  if (n >= kRow && i < n) step(n - kRow, Part{ones << (kRow - (n - i))});
  if (n < kRow) step(0, Part{ones});
}

// Calls step(sum, i, counts) for rows that cover n elements.
template <class Step>
LCS_INLINE inline void scan(int64_t n, Step step) {
  int64_t i = 0;
  for (; i + kSums * kRow <= n; i += kSums * kRow)
    for (int k = 0; k < kSums; ++k) step(k, i + k * kRow, Whole{});
  scan_rest(i, n, [&](int64_t i, auto counts) LCS_INLINE { step(0, i, counts); });
}

constexpr int64_t kFew = 256;  // elements of so short a sum that its end takes as long

// Sums of two kinds, to which step(sums, i, counts) adds.
struct TwoSums {
  Row a, b;

  LCS_INLINE TwoSums() : a(all(0.0f)), b(all(0.0f)) {}
  LCS_INLINE TwoSums(const Row& a, const Row& b) : a(a), b(b) {}
  LCS_INLINE TwoSums operator+(const TwoSums& other) const { return {a + other.a, b + other.b}; }

  // Of few elements: the same sums as by `scan`, one part behind the other, which takes fewer registers.
  template <class Step>
  LCS_INLINE static TwoSums over(int64_t n, Step step) {
    const int64_t whole = n / (kSums * kRow) * (kSums * kRow);
    const auto part = [&](int k) LCS_INLINE {
      TwoSums sums;
      for (int64_t i = k * kRow; i < whole; i += kSums * kRow) step(sums, i, Whole{});
      return sums;
    };
    const TwoSums odd = part(1) + part(3);
    TwoSums first = part(0);
    scan_rest(whole, n, [&](int64_t i, auto counts) LCS_INLINE { step(first, i, counts); });
    return (first + part(2)) + odd;
  }
};

// Sums of x - near and of its square.
template <class E>
NormMoments chunk_moments(const E* x, int64_t n, float near) {
  const Row middle = all(near);
  Sums deviation, square;
  scan(n, [&](int k, int64_t i, auto counts) LCS_INLINE {
    const Row d = counts(row_at(x + i) - middle);
    deviation.part[k] = deviation.part[k] + d;
    square.part[k] = square.part[k] + d * d;
  });
  const double left = total(deviation.row()), share = left / double(n);
  return {near + share, total(square.row()) - left * share};
}

template <class E>
float mean_of(const E* x, int64_t n) {
  Sums sum;
  scan(n, [&](int k, int64_t i, auto counts) LCS_INLINE { sum.part[k] = sum.part[k] + counts(row_at(x + i)); });
  return float(double(total(sum.row())) / double(n));
}

constexpr int64_t kChunkSize = 1 << 12;

// Of an eighth of a chunk, or of all where there is less.
template <class E>
float near_mean(const E* x, int64_t n) {
  const Readable<E> values(x, n);
  return mean_of<E>(values, n < kChunkSize / 8 ? n : kChunkSize / 8);
}

// In one pass. Each chunk's deviations are from what is known of the mean until then, first from `near`, the mean of an
// eighth of a chunk. n times the square of the distance to the true mean is then at most 8 of the first chunk's sum of
// squares, and for the others together at most 2 of the whole one: so little can cancel. The chunks are put together as
// by Chan, Golub and LeVeque (1979).
template <class E>
NormMoments moments_of(const E* x, int64_t n, double near) {
  NormMoments moments{near, 0};
  for (int64_t begin = 0; begin < n; begin += kChunkSize) {
    const int64_t count = n - begin < kChunkSize ? n - begin : kChunkSize;
    const Readable<E> values(x + begin, count);
    const NormMoments chunk = chunk_moments<E>(values, count, float(moments.mean));
    const double step = begin ? chunk.mean - moments.mean : 0, share = double(count) / double(begin + count);
    moments.mean = begin ? moments.mean + step * share : chunk.mean;
    moments.squares += chunk.squares + step * step * share * double(begin);
  }
  return moments;
}

// The same of up to 16 groups of few elements: each step for all of them, so that none waits for its own sums.
template <class E>
void few_moments(const E* x, int64_t n, int64_t groups, NormMoments* to) {
  float deviations[kRow * kRow], squares[kRow * kRow];
  for (int64_t g = groups; g < kRow; ++g) put(deviations + g * kRow, all(0.0f)), put(squares + g * kRow, all(0.0f));
  for (int64_t g = 0; g < groups; ++g) {
    const Readable<E> values(x + g * n, n);
    const E* const p = values;
    const TwoSums sums = TwoSums::over(
        n, [&](TwoSums& sums, int64_t i, auto counts) LCS_INLINE { sums.a = sums.a + counts(row_at(p + i)); });
    put(deviations + g * kRow, sums.a);
  }
  float near[kRow], deviation[kRow], square[kRow];
  put(near, totals(deviations));
  for (float& mean : near) mean = float(double(mean) / double(n));
  for (int64_t g = 0; g < groups; ++g) {
    const Readable<E> values(x + g * n, n);
    const E* const p = values;
    const Row middle = all(near[g]);
    const TwoSums sums = TwoSums::over(n, [&](TwoSums& sums, int64_t i, auto counts) LCS_INLINE {
      const Row d = counts(row_at(p + i) - middle);
      sums.a = sums.a + d;
      sums.b = sums.b + d * d;
    });
    put(deviations + g * kRow, sums.a), put(squares + g * kRow, sums.b);
  }
  put(deviation, totals(deviations)), put(square, totals(squares));
  for (int64_t g = 0; g < groups; ++g) {
    const double left = deviation[g], share = left / double(n);
    to[g] = {near[g] + share, square[g] - left * share};
  }
}

template <class E>
void moments_of_each(const E* x, int64_t n, int64_t groups, NormMoments* to) {
  if (n > kFew) {
    for (int64_t g = 0; g < groups; ++g) to[g] = moments_of(x + g * n, n, near_mean(x + g * n, n));
    return;
  }
  for (int64_t g = 0; g < groups; g += kRow) few_moments(x + g * n, n, groups - g < kRow ? groups - g : kRow, to + g);
}

// 16 columns of a matrix, or all where there are fewer; each column is computed for itself, so that the last 16 may
// overlap those before.
template <class E>
struct Strip {
  const E* x;
  int64_t columns;

  LCS_INLINE Row row(int64_t r) const {
    if (columns >= kRow) return row_at(x + r * columns);
    return row_at<E>(Readable<E>(x + r * columns, columns));
  }
};

// Calls body(column, slot) for strips of 16 columns. The last may overlap the one before, so that what is summed of
// strips goes to slots of 16 of their own.
template <class Body>
LCS_INLINE inline void for_strips(int64_t columns, Body body) {
  for (int64_t c = 0; c < columns; c += kRow) body(c + kRow <= columns || columns < kRow ? c : columns - kRow, c);
}

// Moves what is in slots to where its columns are.
inline void close_slots(int64_t columns, float* vector) {
  if (const int64_t rest = columns % kRow; rest && columns > kRow)
    put(vector + columns - kRow, row_at(vector + columns - rest));
}

// The same for each block of rows, which lie close together: body(first row, row behind the last, column, slot).
template <class Body>
LCS_INLINE inline void for_blocks(int64_t rows, int64_t columns, Body body) {
  constexpr int64_t kTogether = 8;
  for (int64_t r = 0; r < rows; r += kTogether) {
    const int64_t end = r + kTogether < rows ? r + kTogether : rows;
    for_strips(columns, [&](int64_t c, int64_t slot) LCS_INLINE { body(r, end, c, slot); });
  }
}

template <class E>
void column_moments_of(const E* x, int64_t rows, int64_t columns, const NormColumns& to) {
  const int64_t first = (rows + 7) / 8;
  const Row share = all(1.0f / float(first));
  for_strips(columns, [&](int64_t c, int64_t slot) LCS_INLINE {
    const Strip<E> strip{x + c, columns};
    Row sum = all(0.0f);
    for (int64_t r = 0; r < first; ++r) sum = sum + strip.row(r);
    put(to.near + slot, sum * share);
    put(to.deviation + slot, all(0.0f));
    put(to.square + slot, all(0.0f));
  });
  for_blocks(rows, columns, [&](int64_t r, int64_t end, int64_t c, int64_t slot) LCS_INLINE {
    const Strip<E> strip{x + c, columns};
    const Row near = row_at(to.near + slot);
    Row deviation = row_at(to.deviation + slot), square = row_at(to.square + slot);
    for (; r < end; ++r) {
      const Row d = strip.row(r) - near;
      deviation = deviation + d;
      square = square + d * d;
    }
    put(to.deviation + slot, deviation);
    put(to.square + slot, square);
  });
  for (float* const vector : {to.near, to.deviation, to.square}) close_slots(columns, vector);
}

// One line for a whole row.
struct OneLine {
  Row mean, scale, shift;

  LCS_INLINE OneLine(const NormLines& lines, int64_t r)
      : mean(all(lines.mean[r])), scale(all(lines.scale[r])), shift(all(lines.shift[r])) {}
  // a's where `bits` are set, else b's.
  LCS_INLINE OneLine(uint32_t bits, const OneLine& a, const OneLine& b)
      : mean(chosen(bits, a.mean, b.mean)),
        scale(chosen(bits, a.scale, b.scale)),
        shift(chosen(bits, a.shift, b.shift)) {}
  LCS_INLINE Row centred(const Row& x, int64_t) const { return x - mean; }
  LCS_INLINE Row scaled(const Row& x, int64_t) const { return x * scale; }
  LCS_INLINE Row shifted(const Row& x, int64_t) const { return x + shift; }
};

// One line for each column.
struct LineOfEach {
  const NormLines& lines;

  LCS_INLINE Row centred(const Row& x, int64_t c) const { return x - row_at(lines.mean + c); }
  LCS_INLINE Row scaled(const Row& x, int64_t c) const { return x * row_at(lines.scale + c); }
  LCS_INLINE Row shifted(const Row& x, int64_t c) const { return x + row_at(lines.shift + c); }
};

// Calls step(c) for 16 columns at a time, the last of which may overlap those before.
template <class Step>
LCS_INLINE inline void cover(int64_t columns, Step step) {
  int64_t c = 0;
  for (; c + kRow <= columns; c += kRow) step(c);
  if (c < columns) step(columns - kRow);
}

// Whether planes of n elements that follow each other begin and end within 16 of them.
LCS_INLINE inline bool is_ragged(int64_t n) { return n >= kRow && n % kRow; }

// Calls step(i, line) for 16 elements at a time of ragged planes, but for fewer that are left: so few of them cross a
// border of cache lines. Those that cross one of planes take what line_of() gives for either.
template <class LineOf, class Step>
LCS_INLINE inline void cover_planes(int64_t planes, int64_t n, LineOf line_of, Step step) {
  int64_t i = 0;
  for (int64_t r = 0, end = n; r < planes; ++r, end += n) {
    const auto line = line_of(r);
    for (; i + kRow <= end; i += kRow) step(i, line);
    if (i == end || r + 1 == planes) continue;
    step(i, decltype(line_of(r))((1u << (end - i)) - 1, line, line_of(r + 1)));
    i += kRow;
  }
}

template <class E, bool kResidual, bool kRelu>
struct Normalise {
  const E *x, *residual;

  template <class Line>
  LCS_INLINE Row at(int64_t c, const Line& line) const {
    Row a = line.shifted(line.scaled(line.centred(row_at(x + c), c), c), c);
    if constexpr (kResidual) a = rounded_row<E>(a) + row_at(residual + c);
    if constexpr (kRelu) a = clamped(a);
    return rounded_row<E>(a);
  }
};

// What is left of a whole number of rows overlaps those before, and y may be x: it is read before any is written.
template <class E, bool kResidual, bool kRelu, class Line>
LCS_INLINE inline void normalise_row(const E* x, const E* residual, E* y, int64_t columns, const Line& line) {
  const Normalise<E, kResidual, kRelu> normalised{x, residual};
  const int64_t whole = columns / kRow * kRow;
  const Row last = whole < columns ? normalised.at(columns - kRow, line) : Row{};
  for (int64_t c = 0; c < whole; c += kRow) put(y + c, normalised.at(c, line));
  if (whole < columns) put(y + columns - kRow, last);
}

template <class E, bool kResidual, bool kRelu, class LineOf>
void normalise_planes(const NormRows& job, LineOf line_of) {
  const auto *x = static_cast<const E*>(job.x), *residual = static_cast<const E*>(job.residual);
  auto* y = static_cast<E*>(job.y);
  const int64_t all = job.rows * job.columns, whole = all / kRow * kRow;
  const Normalise<E, kResidual, kRelu> normalised{x, residual};
  const Row last = whole < all ? normalised.at(all - kRow, line_of(job.rows - 1)) : Row{};
  cover_planes(job.rows, job.columns, line_of,
               [&](int64_t i, const OneLine& line) LCS_INLINE { put(y + i, normalised.at(i, line)); });
  if (whole < all) put(y + all - kRow, last);
}

template <class E, bool kResidual, bool kRelu, class LineOf>
void normalise(const NormRows& job, LineOf line_of) {
  const int64_t n = job.columns;
  const auto *x = static_cast<const E*>(job.x), *residual = static_cast<const E*>(job.residual);
  auto* y = static_cast<E*>(job.y);
  for (int64_t r = 0; r < job.rows; ++r, x += n, y += n) {
    const auto line = line_of(r);
    if (n >= kRow) {
      normalise_row<E, kResidual, kRelu>(x, residual, y, n, line);
    } else {
      E few[kRow];
      const Readable<E> from(x, n), other(kResidual ? residual : x, n);
      normalise_row<E, kResidual, kRelu>(&from[0], &other[0], few, kRow, line);
      copy(y, few, n);
    }
    if constexpr (kResidual) residual += n;
  }
}

// x - mean, and the gradient behind the ReLU.
template <bool kRelu, class Line>
struct Behind {
  Row centred, grad;

  LCS_INLINE Behind(const Row& x, const Row& g, const Line& line, int64_t c) : centred(line.centred(x, c)), grad(g) {
    if constexpr (kRelu) grad = where_positive(line.shifted(line.scaled(centred, c), c), g);
  }
};

constexpr int64_t kTotalled = kRow / 2;  // rows whose sums of two kinds are totalled together

// sum_row(x, grad, n, step) returns the two sums of a row's n elements, to which step(sums, i, counts) adds.
template <class E, bool kRelu, class SumRow>
LCS_INLINE inline void sums_of(const NormGradRows& job, const NormLines& lines, float* grads, float* products,
                               SumRow sum_row) {
  const int64_t n = job.columns;
  const auto *x = static_cast<const E*>(job.x), *grad = static_cast<const E*>(job.grad);
  for (int64_t first = 0; first < job.rows; first += kTotalled) {
    const int64_t count = job.rows - first < kTotalled ? job.rows - first : kTotalled;
    float sums_of_rows[kRow * kRow], *const products_of_rows = sums_of_rows + kTotalled * kRow;
    for (int64_t r = count; r < kTotalled; ++r)
      put(sums_of_rows + r * kRow, all(0.0f)), put(products_of_rows + r * kRow, all(0.0f));
    for (int64_t r = 0; r < count; ++r, x += n, grad += n) {
      const OneLine line(lines, first + r);
      const TwoSums sums = sum_row(x, grad, n, [&](const E* x, const E* grad, TwoSums& sums, auto counts) LCS_INLINE {
        const Behind<kRelu, OneLine> at(row_at(x), counts(row_at(grad)), line, 0);
        sums.a = sums.a + at.grad;
        sums.b = sums.b + at.grad * at.centred;
      });
      put(sums_of_rows + r * kRow, sums.a), put(products_of_rows + r * kRow, sums.b);
    }
    float found[kRow];
    put(found, totals(sums_of_rows));
    copy(grads + first, found, count);
    copy(products + first, found + kTotalled, count);
  }
}

// Each of these for rows of other lengths; the same sums.
struct SumTinyRow {
  template <class E, class Step>
  LCS_INLINE TwoSums operator()(const E* x, const E* grad, int64_t n, Step step) const {
    const Readable<E> from(x, n), by(grad, n);
    TwoSums sums;
    step(from, by, sums, Part{(1u << n) - 1});
    return sums;
  }
};
struct SumFewRow {
  template <class E, class Step>
  LCS_INLINE TwoSums operator()(const E* x, const E* grad, int64_t n, Step step) const {
    return TwoSums::over(
        n, [&](TwoSums& sums, int64_t i, auto counts) LCS_INLINE { step(x + i, grad + i, sums, counts); });
  }
};
struct SumLongRow {
  template <class E, class Step>
  LCS_INLINE TwoSums operator()(const E* x, const E* grad, int64_t n, Step step) const {
    TwoSums part[kSums];
    scan(n, [&](int k, int64_t i, auto counts) LCS_INLINE { step(x + i, grad + i, part[k], counts); });
    return (part[0] + part[2]) + (part[1] + part[3]);
  }
};
struct SumShortRow {  // of which `scan` makes one sum
  template <class E, class Step>
  LCS_INLINE TwoSums operator()(const E* x, const E* grad, int64_t n, Step step) const {
    const int64_t whole = n / kRow * kRow;
    TwoSums sums;
    for (int64_t i = 0; i < whole; i += kRow) step(x + i, grad + i, sums, Whole{});
    if (whole < n) step(x + n - kRow, grad + n - kRow, sums, Part{((1u << (n - whole)) - 1) << (kRow - (n - whole))});
    return sums;
  }
};

template <class E, bool kRelu>
void column_sums_of(const NormGradRows& job, const LineOfEach& line, float* grads, float* products) {
  for_strips(job.columns, [&](int64_t, int64_t slot) LCS_INLINE {
    put(grads + slot, all(0.0f));
    put(products + slot, all(0.0f));
  });
  for_blocks(job.rows, job.columns, [&](int64_t r, int64_t end, int64_t c, int64_t slot) LCS_INLINE {
    const Strip<E> x{static_cast<const E*>(job.x) + c, job.columns},
        g{static_cast<const E*>(job.grad) + c, job.columns};
    Row sum = row_at(grads + slot), product = row_at(products + slot);
    for (; r < end; ++r) {
      const Behind<kRelu, LineOfEach> at(x.row(r), g.row(r), line, c);
      sum = sum + at.grad;
      product = product + at.grad * at.centred;
    }
    put(grads + slot, sum);
    put(products + slot, product);
  });
  close_slots(job.columns, grads);
  close_slots(job.columns, products);
}

// What comes from the mean and the variance.
struct OneSlope {
  Row slope, offset;

  LCS_INLINE Row of(const Row& centred, int64_t) const { return centred * slope + offset; }
};
struct SlopeOfRows {
  const float *slope, *offset;

  LCS_INLINE OneSlope operator()(int64_t r) const { return {all(slope[r]), all(offset[r])}; }
};
struct SlopeOfEach {
  const float *slope, *offset;

  LCS_INLINE Row of(const Row& centred, int64_t c) const { return centred * row_at(slope + c) + row_at(offset + c); }
};

template <class E, bool kRelu, class Line, class Slope>
LCS_INLINE inline void grad_row(const E* x, const E* grad, E* to, int64_t columns, const Line& line,
                                const Slope& slope) {
  cover(columns, [&](int64_t c) LCS_INLINE {
    const Behind<kRelu, Line> at(row_at(x + c), row_at(grad + c), line, c);
    put(to + c, rounded_row<E>(line.scaled(at.grad, c) + slope.of(at.centred, c)));
  });
}

// A row's line and slope.
struct Sloped {
  OneLine line;
  OneSlope slope;

  LCS_INLINE Sloped(const OneLine& line, const OneSlope& slope) : line(line), slope(slope) {}
  LCS_INLINE Sloped(uint32_t bits, const Sloped& a, const Sloped& b)
      : line(bits, a.line, b.line),
        slope{chosen(bits, a.slope.slope, b.slope.slope), chosen(bits, a.slope.offset, b.slope.offset)} {}
};

template <class E, bool kRelu, class LineOf, class SlopeOf>
void grad_of_planes(const NormGradRows& job, LineOf line_of, SlopeOf slope_of) {
  const auto *x = static_cast<const E*>(job.x), *grad = static_cast<const E*>(job.grad);
  auto* to = static_cast<E*>(job.grad_x);
  const int64_t all = job.rows * job.columns;
  const auto sloped = [&](int64_t r) LCS_INLINE { return Sloped(line_of(r), slope_of(r)); };
  const auto step = [&](int64_t i, const Sloped& of) LCS_INLINE {
    const Behind<kRelu, OneLine> at(row_at(x + i), row_at(grad + i), of.line, 0);
    put(to + i, rounded_row<E>(of.line.scaled(at.grad, 0) + of.slope.of(at.centred, 0)));
  };
  cover_planes(job.rows, job.columns, sloped, step);
  if (all % kRow) step(all - kRow, sloped(job.rows - 1));
}

template <class E, bool kRelu, class LineOf, class SlopeOf>
void input_grad(const NormGradRows& job, LineOf line_of, SlopeOf slope_of) {
  const int64_t n = job.columns;
  const auto *x = static_cast<const E*>(job.x), *grad = static_cast<const E*>(job.grad);
  auto* to = static_cast<E*>(job.grad_x);
  for (int64_t r = 0; r < job.rows; ++r, x += n, grad += n, to += n) {
    const auto line = line_of(r);
    const auto slope = slope_of(r);
    if (n >= kRow) {
      grad_row<E, kRelu>(x, grad, to, n, line, slope);
    } else {
      E few[kRow];
      const Readable<E> from(x, n), by(grad, n);
      grad_row<E, kRelu>(&from[0], &by[0], few, kRow, line, slope);
      copy(to, few, n);
    }
  }
}

template <class Body>
auto with_dtype(DType dtype, Body body) {
  if (dtype == DType::bfloat16) return body(BFloat16{});
  if (dtype == DType::float16) return body(Float16{});
  return body(float{});
}

// Calls body with an element of the job's dtype, and whether a ReLU comes behind.
template <class Body>
auto with_kind(const NormGradRows& job, Body body) {
  return with_dtype(job.dtype, [&](auto e) {
    return job.relu ? body(e, std::bool_constant<true>{}) : body(e, std::bool_constant<false>{});
  });
}

// Likewise, and whether a residual is added.
template <class Body>
void with_kind(const NormRows& job, Body body) {
  using std::bool_constant;
  with_dtype(job.dtype, [&](auto e) {
    if (job.residual)
      job.relu ? body(e, bool_constant<true>{}, bool_constant<true>{})
               : body(e, bool_constant<true>{}, bool_constant<false>{});
    else
      job.relu ? body(e, bool_constant<false>{}, bool_constant<true>{})
               : body(e, bool_constant<false>{}, bool_constant<false>{});
  });
}

void blend_vector(const LineVector& vector, float alpha, int64_t n, float* to) {
  with_types(vector.dtype, DType::float32, vector.end1, [&](auto types) {
    using T = decltype(types);
    const Blend<T> from(vector.end0, vector.end1, alpha);
    const int64_t whole = n / kBlock * kBlock;
    for (int64_t i = 0; i < whole; i += kLanes) store(to + i, rounded<typename T::in>(from.at(i)));
    if (whole == n) return;
    Tail<T> tail(from, whole, n);
    const Blend<T> rest = tail.blend(alpha);
    float values[kBlock];
    for (int64_t i = 0; i < kBlock; i += kLanes) store(values + i, rounded<typename T::in>(rest.at(i)));
    copy(to + whole, values, n - whole);
  });
}

void moments(const void* x, int64_t n, int64_t groups, DType dtype, NormMoments* to) {
  with_dtype(dtype, [&](auto e) { moments_of_each(static_cast<const decltype(e)*>(x), n, groups, to); });
}

void column_moments(const void* x, int64_t rows, int64_t columns, DType dtype, const NormColumns& to) {
  with_dtype(dtype, [&](auto e) { column_moments_of(static_cast<const decltype(e)*>(x), rows, columns, to); });
}

void planes(const NormRows& rows, const NormLines& lines) {
  with_kind(rows, [&](auto e, auto residual, auto relu) {
    using E = decltype(e);
    const auto line_of = [&](int64_t r) LCS_INLINE { return OneLine(lines, r); };
    is_ragged(rows.columns) ? normalise_planes<E, residual, relu>(rows, line_of)
                            : normalise<E, residual, relu>(rows, line_of);
  });
}

void columns(const NormRows& rows, const NormLines& lines) {
  with_kind(rows, [&](auto e, auto residual, auto relu) {
    normalise<decltype(e), residual, relu>(rows, [&](int64_t) LCS_INLINE { return LineOfEach{lines}; });
  });
}

void sums(const NormGradRows& rows, const NormLines& lines, float* grads, float* products) {
  const int64_t n = rows.columns;
  with_kind(rows, [&](auto e, auto relu) {
    const auto run = [&](auto sum_row) { sums_of<decltype(e), relu>(rows, lines, grads, products, sum_row); };
    if (n < kRow) return run(SumTinyRow{});
    if (n < kSums * kRow) return run(SumShortRow{});
    n <= kFew ? run(SumFewRow{}) : run(SumLongRow{});
  });
}

void column_sums(const NormGradRows& rows, const NormLines& lines, float* grads, float* products) {
  with_kind(rows,
            [&](auto e, auto relu) { column_sums_of<decltype(e), relu>(rows, LineOfEach{lines}, grads, products); });
}

void grad_planes(const NormGradRows& rows, const NormLines& lines, const float* slope, const float* offset) {
  const SlopeOfRows slope_of{slope, offset};
  with_kind(rows, [&](auto e, auto relu) {
    using E = decltype(e);
    const auto line_of = [&](int64_t r) LCS_INLINE { return OneLine(lines, r); };
    is_ragged(rows.columns) ? grad_of_planes<E, relu>(rows, line_of, slope_of)
                            : input_grad<E, relu>(rows, line_of, slope_of);
  });
}

void grad_columns(const NormGradRows& rows, const NormLines& lines, const float* slope, const float* offset) {
  with_kind(rows, [&](auto e, auto relu) {
    const auto line_of = [&](int64_t) LCS_INLINE { return LineOfEach{lines}; };
    input_grad<decltype(e), relu>(rows, line_of, [&](int64_t) LCS_INLINE { return SlopeOfEach{slope, offset}; });
  });
}
#undef LCS_INLINE
