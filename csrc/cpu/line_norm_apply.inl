// Compiled behind line_norm.inl: what is done with the moments, and the gradients.

// Calls body(row, group) for the rows of groups that follow each other.
template <class Body>
LCS_INLINE inline void for_rows(const NormGroups& groups, int64_t rows, Body body) {
  for (int64_t r = 0, g = 0; r < rows; ++g)
    for (const int64_t end = r + groups.channels; r < end; ++r) body(r, g);
}

// a's for the first n elements, then b's.
LCS_INLINE inline Row joined(int64_t n, const Row& a, const Row& b) { return chosen((1u << n) - 1, a, b); }

// One line for a whole row.
struct OneLine {
  Row mean, scale, shift;

  LCS_INLINE Row centred(const Row& x, int64_t) const { return x - mean; }
  LCS_INLINE Row scaled(const Row& x, int64_t) const { return x * scale; }
  LCS_INLINE Row shifted(const Row& x, int64_t) const { return x + shift; }
  // Of another row of the group.
  LCS_INLINE OneLine beside(const OneLine& other) const { return {mean, other.scale, other.shift}; }
  // Behind n more elements, the next row's: of the same group, or of another.
  LCS_INLINE OneLine until(int64_t n, const OneLine& next) const {
    return {mean, joined(n, scale, next.scale), joined(n, shift, next.shift)};
  }
  LCS_INLINE OneLine until_another(int64_t n, const OneLine& next) const {
    return {joined(n, mean, next.mean), joined(n, scale, next.scale), joined(n, shift, next.shift)};
  }
};
LCS_INLINE inline OneLine line_at(const NormGroups& groups, int64_t r, int64_t g) {
  return {all(groups.mean[g]), all(groups.rstd[g] * groups.weight[r]), all(groups.bias[r])};
}

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
// border of cache lines. Those that cross one of planes take what line_of(row, group) gives for either.
template <class LineOf, class Step>
LCS_INLINE inline void cover_planes(const NormGroups& groups, int64_t planes, int64_t n, LineOf line_of, Step step) {
  int64_t i = 0, r = 0, end = n;
  for (int64_t g = 0;; ++g) {
    auto line = line_of(r, g);
    for (const int64_t next_group = r + groups.channels;; end += n) {
      for (; i + kRow <= end; i += kRow) step(i, line);
      if (++r == next_group) break;
      const auto next = line.beside(line_of(r, g));
      if (i < end) step(i, line.until(end - i, next)), i += kRow;
      line = next;
    }
    if (r == planes) return;
    if (i < end) step(i, line.until_another(end - i, line_of(r, g + 1))), i += kRow;
    end += n;
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

template <class E, bool kResidual, bool kRelu>
void normalise_planes(const NormRows& job, const NormGroups& groups) {
  const auto *x = static_cast<const E*>(job.x), *residual = static_cast<const E*>(job.residual);
  auto* y = static_cast<E*>(job.y);
  const int64_t all = job.rows * job.columns, whole = all / kRow * kRow;
  const Normalise<E, kResidual, kRelu> normalised{x, residual};
  const auto line_of = [&](int64_t r, int64_t g) LCS_INLINE { return line_at(groups, r, g); };
  const Row last =
      whole < all ? normalised.at(all - kRow, line_of(job.rows - 1, job.rows / groups.channels - 1)) : Row{};
  cover_planes(groups, job.rows, job.columns, line_of,
               [&](int64_t i, const OneLine& line) LCS_INLINE { put(y + i, normalised.at(i, line)); });
  if (whole < all) put(y + all - kRow, last);
}

template <class E, bool kResidual, bool kRelu, class Line>
LCS_INLINE inline void normalise(const NormRows& job, int64_t r, const Line& line) {
  const int64_t n = job.columns;
  const E* const x = static_cast<const E*>(job.x) + r * n;
  const E* const residual = kResidual ? static_cast<const E*>(job.residual) + r * n : x;
  E* const y = static_cast<E*>(job.y) + r * n;
  if (n >= kRow) return normalise_row<E, kResidual, kRelu>(x, residual, y, n, line);
  E few[kRow];
  const Readable<E> from(x, n), other(residual, n);
  normalise_row<E, kResidual, kRelu>(&from[0], &other[0], few, kRow, line);
  copy(y, few, n);
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

// sum_row(x, grad, step) returns the sums of a row, to which step(sums, x, grad, counts) adds.
template <class E, bool kRelu, class SumRow>
LCS_INLINE inline void sums_of(const NormGradRows& job, const NormGroups& groups, float* grads, float* products,
                               SumRow sum_row) {
  const auto *x = static_cast<const E*>(job.x), *grad = static_cast<const E*>(job.grad);
  float sums_of_rows[kRow * kRow], *const products_of_rows = sums_of_rows + kTotalled * kRow;
  for (int64_t r = job.rows; r < kTotalled; ++r)
    put(sums_of_rows + r * kRow, all(0.0f)), put(products_of_rows + r * kRow, all(0.0f));
  for (int64_t first = 0, g = 0, left = groups.channels; first < job.rows; first += kTotalled) {
    const int64_t count = job.rows - first < kTotalled ? job.rows - first : kTotalled;
    for (int64_t k = 0; k < count; ++k, x += job.columns, grad += job.columns) {
      const OneLine line = line_at(groups, first + k, g);
      if (--left == 0) ++g, left = groups.channels;
      const Sums sums = sum_row(x, grad, [&](Sums& sums, const E* x, const E* grad, auto counts) LCS_INLINE {
        const Behind<kRelu, OneLine> at(row_at(x), counts(row_at(grad)), line, 0);
        sums = {sums.a + at.grad, sums.b + at.grad * at.centred};
      });
      put(sums_of_rows + k * kRow, sums.a), put(products_of_rows + k * kRow, sums.b);
    }
    float found[kRow];
    totals(sums_of_rows, found);
    const auto move = [&](int64_t n) LCS_INLINE {
      copy(grads + first, found, n);
      copy(products + first, found + kTotalled, n);
    };
    count == kTotalled ? move(kTotalled) : move(count);
  }
}

// Of n elements.
struct SumRow {
  int64_t n;

  template <class E, class Step>
  LCS_INLINE Sums operator()(const E* x, const E* grad, Step step) const {
    const Readable<E> from(x, n), by(grad, n);
    const auto at = [step, x = &from[0], grad = &by[0]](Sums& sums, int64_t i, auto counts)
                        LCS_INLINE { step(sums, x + i, grad + i, counts); };
    return n <= kFew ? Sums::few(n, at) : Sums::many(n, at);
  }
};

// Of kRow to kSums * kRow - 1, which are one part: the same sums.
struct SumShortRow {
  int64_t n, whole = n / kRow * kRow;
  Part rest{((1u << (n - whole)) - 1) << (kRow - (n - whole))};

  template <class E, class Step>
  LCS_INLINE Sums operator()(const E* x, const E* grad, Step step) const {
    Sums sums;
    for (int64_t i = 0; i < whole; i += kRow) step(sums, x + i, grad + i, Whole{});
    if (whole < n) step(sums, x + n - kRow, grad + n - kRow, rest);
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

  LCS_INLINE Sloped beside(const Sloped& other) const { return {line.beside(other.line), slope}; }
  LCS_INLINE Sloped until(int64_t n, const Sloped& next) const { return {line.until(n, next.line), slope}; }
  LCS_INLINE Sloped until_another(int64_t n, const Sloped& next) const {
    return {line.until_another(n, next.line),
            {joined(n, slope.slope, next.slope.slope), joined(n, slope.offset, next.slope.offset)}};
  }
};

template <class E, bool kRelu>
void grad_of_planes(const NormGradRows& job, const NormGroups& groups, const float* slope, const float* offset) {
  const auto *x = static_cast<const E*>(job.x), *grad = static_cast<const E*>(job.grad);
  auto* to = static_cast<E*>(job.grad_x);
  const int64_t elements = job.rows * job.columns;
  const auto sloped = [&](int64_t r, int64_t g)
                          LCS_INLINE { return Sloped{line_at(groups, r, g), {all(slope[g]), all(offset[g])}}; };
  const auto step = [&](int64_t i, const Sloped& of) LCS_INLINE {
    const Behind<kRelu, OneLine> at(row_at(x + i), row_at(grad + i), of.line, 0);
    put(to + i, rounded_row<E>(of.line.scaled(at.grad, 0) + of.slope.of(at.centred, 0)));
  };
  cover_planes(groups, job.rows, job.columns, sloped, step);
  if (elements % kRow) step(elements - kRow, sloped(job.rows - 1, job.rows / groups.channels - 1));
}

template <class E, bool kRelu, class Line, class Slope>
LCS_INLINE inline void input_grad(const NormGradRows& job, int64_t r, const Line& line, const Slope& slope) {
  const int64_t n = job.columns;
  const auto *x = static_cast<const E*>(job.x) + r * n, *grad = static_cast<const E*>(job.grad) + r * n;
  E* const to = static_cast<E*>(job.grad_x) + r * n;
  if (n >= kRow) return grad_row<E, kRelu>(x, grad, to, n, line, slope);
  E few[kRow];
  const Readable<E> from(x, n), by(grad, n);
  grad_row<E, kRelu>(&from[0], &by[0], few, kRow, line, slope);
  copy(to, few, n);
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

void planes(const NormRows& rows, const NormGroups& groups) {
  with_kind(rows, [&](auto e, auto residual, auto relu) {
    using E = decltype(e);
    if (is_ragged(rows.columns)) return normalise_planes<E, residual, relu>(rows, groups);
    for_rows(groups, rows.rows,
             [&](int64_t r, int64_t g) LCS_INLINE { normalise<E, residual, relu>(rows, r, line_at(groups, r, g)); });
  });
}

void columns(const NormRows& rows, const NormLines& lines) {
  with_kind(rows, [&](auto e, auto residual, auto relu) {
    for (int64_t r = 0; r < rows.rows; ++r) normalise<decltype(e), residual, relu>(rows, r, LineOfEach{lines});
  });
}

void sums(const NormGradRows& rows, const NormGroups& groups, float* grads, float* products) {
  const int64_t n = rows.columns;
  with_kind(rows, [&](auto e, auto relu) {
    using E = decltype(e);
    if (n >= kRow && n < kSums * kRow) return sums_of<E, relu>(rows, groups, grads, products, SumShortRow{n});
    sums_of<E, relu>(rows, groups, grads, products, SumRow{n});
  });
}

void column_sums(const NormGradRows& rows, const NormLines& lines, float* grads, float* products) {
  with_kind(rows,
            [&](auto e, auto relu) { column_sums_of<decltype(e), relu>(rows, LineOfEach{lines}, grads, products); });
}

void grad_planes(const NormGradRows& rows, const NormGroups& groups, const float* slope, const float* offset) {
  with_kind(rows, [&](auto e, auto relu) {
    using E = decltype(e);
    if (is_ragged(rows.columns)) return grad_of_planes<E, relu>(rows, groups, slope, offset);
    for_rows(groups, rows.rows, [&](int64_t r, int64_t g) LCS_INLINE {
      input_grad<E, relu>(rows, r, line_at(groups, r, g), OneSlope{all(slope[g]), all(offset[g])});
    });
  });
}

void grad_columns(const NormGradRows& rows, const NormLines& lines, const float* slope, const float* offset) {
  with_kind(rows, [&](auto e, auto relu) {
    for (int64_t r = 0; r < rows.rows; ++r)
      input_grad<decltype(e), relu>(rows, r, LineOfEach{lines}, SlopeOfEach{slope, offset});
  });
}
#undef LCS_INLINE
