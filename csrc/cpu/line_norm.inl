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
__attribute__((noinline)) void totals(const float* rows, float* to) {
  const Row each_total = each([&](int v) LCS_INLINE {
    Float of[kLanes];
    for (int i = 0; i < kLanes; ++i) of[i] = halved(row_at(rows + (v * kLanes + i) * kRow));
    return reduce_each(of);
  });
  put(to, each_total);
}

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
    if (n >= kRow) return;
    for (E& element : few_) element = E{};
    copy(few_, p, n);
  }
  Readable(const Readable&) = delete;
  operator const E*() const { return p_; }

 private:
  E few_[kRow];
  const E* p_;
};

// Calls step(i, counts) for rows that cover the elements from i to n, each counted once. What is left of a whole number
// of rows counts at the end of the last 16 elements, or at the start of fewer.
template <class Step>
LCS_INLINE inline void scan_rest(int64_t i, int64_t n, Step step) {
  for (; i + kRow <= n; i += kRow) step(i, Whole{});
  const int64_t last = n < kRow ? 0 : n - kRow;
  if (i < n) step(last, Part{((1u << (n - i)) - 1) << (i - last)});
}

// Sums of two kinds, to which step(sums, i, counts) adds rows that cover n elements: in four parts as long as there are
// four rows.
struct Sums {
  Row a, b;

  LCS_INLINE Sums() : a(all(0.0f)), b(all(0.0f)) {}
  LCS_INLINE Sums(const Row& a, const Row& b) : a(a), b(b) {}
  LCS_INLINE Sums operator+(const Sums& other) const { return {a + other.a, b + other.b}; }

  template <class Step>
  LCS_INLINE static Sums many(int64_t n, Step step) {
    Sums part[kSums];
    int64_t i = 0;
    for (; i + kSums * kRow <= n; i += kSums * kRow)
      for (int k = 0; k < kSums; ++k) step(part[k], i + k * kRow, Whole{});
    scan_rest(i, n, [&](int64_t i, auto counts) LCS_INLINE { step(part[0], i, counts); });
    return (part[0] + part[2]) + (part[1] + part[3]);
  }

  // The same, one part behind the other, which takes fewer registers.
  template <class Step>
  LCS_INLINE static Sums few(int64_t n, Step step) {
    const int64_t whole = n / (kSums * kRow) * (kSums * kRow);
    float a[kSums * kRow], b[kSums * kRow];
    Sums sums;
#pragma GCC unroll 1
    for (int k = whole ? kSums - 1 : -1; k >= 0; --k) {  // the first part last, which takes the rest too
      sums = Sums();
      for (int64_t i = k * kRow; i < whole; i += kSums * kRow) step(sums, i, Whole{});
      put(a + k * kRow, sums.a), put(b + k * kRow, sums.b);
    }
    scan_rest(whole, n, [&](int64_t i, auto counts) LCS_INLINE { step(sums, i, counts); });
    if (whole == 0) return sums;
    const auto part = [&](int k) LCS_INLINE { return Sums(row_at(a + k * kRow), row_at(b + k * kRow)); };
    return (sums + part(2)) + (part(1) + part(3));
  }
};

constexpr int64_t kFew = 256;  // elements of so short a sum that its end takes as long

// Adds x, and its distance to `near` and the square of that.
template <class E>
LCS_INLINE inline auto adding(const E* x) {
  return [x](Sums& sums, int64_t i, auto counts) LCS_INLINE { sums.a = sums.a + counts(row_at(x + i)); };
}
template <class E>
LCS_INLINE inline auto adding_deviation(const E* x, float near) {
  return [x, middle = all(near)](Sums& sums, int64_t i, auto counts) LCS_INLINE {
    const Row d = counts(row_at(x + i) - middle);
    sums = {sums.a + d, sums.b + d * d};
  };
}

// From the sums of x - near and of its square.
inline NormMoments moments_from(float near, float deviation, float square, int64_t n) {
  const double left = deviation, share = left / double(n);
  return {near + share, square - left * share};
}

template <class E>
NormMoments chunk_moments(const E* x, int64_t n, float near) {
  const Sums sums = Sums::many(n, adding_deviation(x, near));
  return moments_from(near, total(sums.a), total(sums.b), n);
}

template <class E>
float mean_of(const E* x, int64_t n) {
  return float(double(total(Sums::many(n, adding(x)).a)) / double(n));
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
  float deviations[kRow * kRow], squares[kRow * kRow], near[kRow], deviation[kRow], square[kRow];
  for (int64_t g = groups; g < kRow; ++g) put(deviations + g * kRow, all(0.0f)), put(squares + g * kRow, all(0.0f));
  for (int64_t g = 0; g < groups; ++g) {
    const Readable<E> values(x + g * n, n);
    put(deviations + g * kRow, Sums::few(n, adding<E>(values)).a);
  }
  totals(deviations, near);
  for (float& mean : near) mean = float(double(mean) / double(n));
  for (int64_t g = 0; g < groups; ++g) {
    const Readable<E> values(x + g * n, n);
    const Sums sums = Sums::few(n, adding_deviation<E>(values, near[g]));
    put(deviations + g * kRow, sums.a), put(squares + g * kRow, sums.b);
  }
  totals(deviations, deviation), totals(squares, square);
  for (int64_t g = 0; g < groups; ++g) to[g] = moments_from(near[g], deviation[g], square[g], n);
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
