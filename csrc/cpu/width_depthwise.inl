// Compiled once per instruction set, after its lanes_*.inl, those of one lane in a namespace `single`, evens(p), the
// elements 0, 2, 4, ... of p, and width_depthwise_lanes.inl, in an unnamed namespace inside its target region.
constexpr int kSums = 8;  // vectors of a tile, as many as multipliers work on at once

// Steps of more are all kFar.
constexpr int kFar = 3;

template <int kStep, class T>
inline Float load_by(const T* p) {
  return kStep == 1 ? load(p) : evens(p);
}

// n elements, `step` apart.
template <int kStep, class T>
inline void fill_columns(const T* from, int64_t step, int64_t n, float* to, const T* end) {
  if (kStep < kFar && n >= kLanes) {
    for (int64_t i = 0; i + kLanes <= n; i += kLanes) store(to + i, load_by<kStep>(from + i * kStep));
    if (n % kLanes) store(to + n - kLanes, load_by<kStep>(from + (n - kLanes) * kStep));
  } else if (kStep < kFar && end - from >= kStep * kLanes) {
    store(to, where(from_bits((1u << n) - 1), load_by<kStep>(from)));
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = single::load(from + i * step);
  }
}

template <class T, int kStep>
void fill_by(const DepthwiseFill& f) {
  const T *from = static_cast<const T*>(f.from), *const end = static_cast<const T*>(f.end);
  const DepthwisePhase* const last = f.phases + f.phase_count;
  float* to = f.to;
  for (int64_t row = 0; row < f.rows; ++row, from += f.from_stride, to += f.to_stride)
    for (const DepthwisePhase* p = f.phases; p != last; ++p)
      fill_columns<kStep>(from + p->from, f.step, p->columns, to + p->to, end);
}

template <class T>
void fill_of(const DepthwiseFill& f) {
  f.step == 1 ? fill_by<T, 1>(f) : f.step == 2 ? fill_by<T, 2>(f) : fill_by<T, kFar>(f);
}

void fill(const DepthwiseFill& f) { f.dtype == DType::bfloat16 ? fill_of<BFloat16>(f) : fill_of<float>(f); }

// What becomes of sums.
template <class T>
struct Results {
  Float scale, bias, floor, cap;

  explicit Results(const DepthwiseRows& d)
      : scale(set1(d.scale)), bias(set1(d.bias)), floor(set1(d.floor)), cap(set1(d.cap)) {}
  Float operator()(Float sum) const { return rounded<T>(lowered_to(raised_to(fmadd(sum, scale, bias), floor), cap)); }
};

// Where a tile's rows are written, whole vectors of each.
template <class T>
struct Place {
  T* y;
  int64_t stride;
};

template <class T, int kRows, int kVectors>
void tile(const DepthwiseRows& d, const float* x, Place<T> to) {
  Float sum[kRows * kVectors];
  LCS_UNROLL
  for (int i = 0; i < kRows * kVectors; ++i) sum[i] = set1(0.0f);
  const float* w = d.weight;
  for (int64_t i = 0; i < d.kernel_height; ++i, x += d.tap_stride)
    for (int64_t j = 0; j < d.kernel_width; ++j, ++w) {
      const float* at = x + d.taps_at[j];
      const Float weight = set1(*w);
      LCS_UNROLL
      for (int r = 0; r < kRows; ++r, at += d.x_stride) LCS_UNROLL
      for (int v = 0; v < kVectors; ++v)
        sum[r * kVectors + v] = fmadd(load(at + v * kLanes), weight, sum[r * kVectors + v]);
    }
  const Results<T> result(d);
  LCS_UNROLL
  for (int i = 0; i < kRows * kVectors; ++i)
    store(to.y + i / kVectors * to.stride + i % kVectors * kLanes, result(sum[i]));
}

template <class T>
using Tile = void (*)(const DepthwiseRows&, const float*, Place<T>);

template <class T, int kRows, int kVectors>
constexpr Tile<T> tile_of() {
  if constexpr (kRows * kVectors <= kSums)
    return tile<T, kRows, kVectors>;
  else
    return nullptr;
}

template <class T, int... i>
Tile<T> tile_in(int64_t rows, int64_t vectors, std::integer_sequence<int, i...>) {
  static constexpr Tile<T> kTable[] = {tile_of<T, i % kSums + 1, i / kSums + 1>()...};
  return kTable[(vectors - 1) * kSums + rows - 1];
}

// Calls tile(rows, first column, place) for tiles of some rows and `width` columns, or less where that is all: what
// they put behind a row the next one overwrites, and nothing is put behind the last row.
template <class T, class Run>
void for_tiles(const DepthwiseRows& d, int64_t rows, int64_t width, const Run& tile) {
  T *y = static_cast<T*>(d.y), *const end = y + (d.rows - 1) * d.y_stride + d.columns;
  for (int64_t row = 0, n; row < d.rows; row += n, y += n * d.y_stride) {
    n = std::min(rows, d.rows - row);
    const float* const x = d.x + row * d.x_stride;
    if (end - y >= (n - 1) * d.y_stride + width) {
      tile(n, x, Place<T>{y, d.y_stride});
      continue;
    }
    T apart[kSums * kLanes];
    tile(n, x, Place<T>{apart, width});
    T* to = y;
    for (const T* from = apart; from != apart + n * width; from += width, to += d.y_stride)
      if (end - to < width)
        __builtin_memcpy(to, from, size_t(d.columns) * sizeof(T));
      else
        for (int64_t i = 0; i < width; i += kLanes) store(to + i, rounded<T>(load(from + i)));
  }
}

// The last tile of a row ends with it, and computes some positions again, where that is not the first.
inline int64_t start_of(int64_t tile, int64_t width, int64_t columns) {
  return std::max<int64_t>(std::min(tile, columns - width), 0);
}

template <class T>
void rows_any(const DepthwiseRows& d) {
  const auto parts = [](int64_t n, int64_t most) { return (n + most - 1) / most; };
  const int64_t all = parts(d.columns, kLanes), vectors = parts(all, parts(all, kSums)), width = vectors * kLanes;
  for_tiles<T>(d, kSums / vectors, width, [&](int64_t rows, const float* x, Place<T> to) {
    const Tile<T> run = tile_in<T>(rows, vectors, std::make_integer_sequence<int, kSums * kSums>());
    for (int64_t i = 0; i < d.columns; i += width) {
      const int64_t at = start_of(i, width, d.columns);
      run(d, x + at, {to.y + at, to.stride});
    }
  });
}

// kRows rows of 3 x 3 taps, each of which is where the tap above it is of the next row.
template <class T, int kRows>
void rows_of_nine(const DepthwiseRows& d, const float* x, Place<T> to) {
  const int64_t columns = d.columns, below = d.tap_stride;
  const int64_t taps_at[] = {d.taps_at[0], d.taps_at[1], d.taps_at[2]};
  const Results<T> result(d);
  Float w[9];
  LCS_UNROLL
  for (int i = 0; i < 9; ++i) w[i] = set1(d.weight[i]);
  for (int64_t tile = 0; tile < columns; tile += kLanes) {
    const int64_t first = start_of(tile, kLanes, columns);
    Float sum[kRows];
    LCS_UNROLL
    for (int r = 0; r < kRows; ++r) sum[r] = set1(0.0f);
    LCS_UNROLL
    for (int i = 0; i < kRows + 2; ++i) LCS_UNROLL
    for (int j = 0; j < 3; ++j) {
      const Float term = load(x + first + i * below + taps_at[j]);
      LCS_UNROLL
      for (int k = 0; k < 3; ++k)
        if (i >= k && i - k < kRows) sum[i - k] = fmadd(term, w[k * 3 + j], sum[i - k]);
    }
    LCS_UNROLL
    for (int r = 0; r < kRows; ++r) store(to.y + r * to.stride + first, result(sum[r]));
  }
}

template <class T>
void rows_by_nine(const DepthwiseRows& d) {
  for_tiles<T>(d, 4, kLanes, [&](int64_t rows, const float* x, Place<T> to) {
    rows == 4   ? rows_of_nine<T, 4>(d, x, to)
    : rows == 3 ? rows_of_nine<T, 3>(d, x, to)
    : rows == 2 ? rows_of_nine<T, 2>(d, x, to)
                : rows_of_nine<T, 1>(d, x, to);
  });
}

template <class T>
void rows_of(const DepthwiseRows& d) {
  const bool nine = d.kernel_height == 3 && d.kernel_width == 3 && d.x_stride == d.tap_stride;
  nine ? rows_by_nine<T>(d) : rows_any<T>(d);
}

void rows(const DepthwiseRows& d) { d.dtype == DType::bfloat16 ? rows_of<BFloat16>(d) : rows_of<float>(d); }

template <class T>
void lower_of(T* x, int64_t n, float cap) {
  const Float most = set1(cap);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, rounded<T>(lowered_to(load(x + i), most)));
  for (; i < n; ++i) single::store(x + i, single::rounded<T>(single::lowered_to(single::load(x + i), cap)));
}

void lower(void* x, int64_t n, DType dtype, float cap) {
  dtype == DType::bfloat16 ? lower_of(static_cast<BFloat16*>(x), n, cap) : lower_of(static_cast<float*>(x), n, cap);
}

template <class T>
void add_of(T* y, const T* residual, int64_t n, float floor, float cap) {
  const Float least = set1(floor), most = set1(cap);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    store(y + i, rounded<T>(lowered_to(raised_to(add(load(y + i), load(residual + i)), least), most)));
  for (; i < n; ++i) {
    const float sum = single::load(y + i) + single::load(residual + i);
    single::store(y + i, single::rounded<T>(single::lowered_to(single::raised_to(sum, floor), cap)));
  }
}

void add_all(void* y, const void* residual, int64_t n, DType dtype, float floor, float cap) {
  if (dtype == DType::bfloat16)
    add_of(static_cast<BFloat16*>(y), static_cast<const BFloat16*>(residual), n, floor, cap);
  else
    add_of(static_cast<float*>(y), static_cast<const float*>(residual), n, floor, cap);
}

WidthDepthwiseKernels table() {
  return {kSums * kLanes, fill, rows, lower, add_all, channels::kLanes, load_lanes, store_lanes, lanes};
}
