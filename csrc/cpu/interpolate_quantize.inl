// Compiled once per instruction set, after its lanes_*.inl and blend.inl, in an unnamed namespace inside its target
// region.
constexpr int kApart = kVectors < 2 ? kVectors : 2;  // running extremes, so that none waits for the other

template <class T>
struct Extremes {
  Float low[kApart], high[kApart], spoilt[kApart];  // x - x is 0, or NaN where x is not finite

  Extremes() {
    for (int v = 0; v < kApart; ++v) low[v] = high[v] = spoilt[v] = set1(0.0f);
  }

  void block(const Blend<T>& blend, int64_t i) {
    blend.fetch(i + kAhead);
    for (int v = 0; v < kVectors; ++v) {
      const Float x = blend.at(i + v * kLanes);
      low[v % kApart] = lowered_to(low[v % kApart], x);
      high[v % kApart] = raised_to(high[v % kApart], x);
      spoilt[v % kApart] = add(spoilt[v % kApart], sub(x, x));
    }
  }

  Float least() const { return kApart == 1 ? low[0] : lowered_to(low[0], low[kApart - 1]); }
  Float greatest() const { return kApart == 1 ? high[0] : raised_to(high[0], high[kApart - 1]); }
  Float error() const { return kApart == 1 ? spoilt[0] : add(spoilt[0], spoilt[kApart - 1]); }
};

template <class T>
Extremes<T> extremes_of(const Blend<T>& blend, float alpha, int64_t begin, int64_t end) {
  Extremes<T> extremes;
  for (; begin + kBlock <= end; begin += kBlock) extremes.block(blend, begin);
  if (begin < end) extremes.block(Tail<T>(blend, begin, end).blend(alpha), 0);
  return extremes;
}

struct Grid {
  Float inverse, zero, lowest, highest, part, step, offset, scale;

  explicit Grid(const QuantizeGrid& g) : Grid(&g.inverse, 1) {}

  // Of the eight numbers of a QuantizeGrid, `apart` from each other.
  Grid(const float* g, int64_t apart)
      : inverse(set1(g[0])),
        zero(set1(g[apart])),
        lowest(set1(g[2 * apart])),
        highest(set1(g[3 * apart])),
        part(set1(g[4 * apart])),
        step(set1(g[5 * apart])),
        offset(set1(g[6 * apart])),
        scale(set1(g[7 * apart])) {}

  Float value(Float x) const {
    const Float code = lowered_to(raised_to(add(nearest(mul(x, inverse)), zero), lowest), highest);
    return mul(add(mul(floored(mul(code, part)), step), offset), scale);
  }
};

template <class T, bool kStream, bool kFetch>
void write_block(const Blend<T>& from, int64_t i, const Grid& grid, typename T::out* w) {
  if constexpr (kFetch) from.fetch(i + kAhead);
  if constexpr (!kStream) fetch_block<true>(w, kAhead);
  for (int v = 0; v < kVectors; ++v) {
    const Float value = rounded<typename T::out>(grid.value(from.at(i + v * kLanes)));
    if constexpr (kStream)
      stream(w + v * kLanes, value);
    else
      store(w + v * kLanes, value);
  }
}

// kFetch: the weights are not in the first-level cache.
template <bool kFetch, class T>
void write_range(const Blend<T>& blend, float alpha, int64_t begin, int64_t end, const Grid& grid, typename T::out* w,
                 bool streams) {
  if (streams)
    for (; begin + kBlock <= end; begin += kBlock) write_block<T, true, kFetch>(blend, begin, grid, w + begin);
  else
    for (; begin + kBlock <= end; begin += kBlock) write_block<T, false, kFetch>(blend, begin, grid, w + begin);
  if (begin == end) return;
  Tail<T> tail(blend, begin, end);
  write_block<T, false, false>(tail.blend(alpha), 0, grid, tail.w);
  copy(w + begin, tail.w, end - begin);
}

// Ranges of sixteen groups, and then their grids, side by side.
class GroupGrids {
 public:
  static constexpr int kGroups = 16;

  void set(int64_t i, Float least, Float greatest, Float error) {
    low_[i] = least;
    high_[i] = greatest;
    error_[i] = error;
  }

  void close(const QuantizeCodes& codes) {
    alignas(64) float low[kGroups], high[kGroups], error[kGroups];
    for (int i = 0; i < kGroups; i += kLanes) {
      store(low + i, reduce_least_each(low_ + i));
      store(high + i, reduce_greatest_each(high_ + i));
      store(error + i, reduce_each(error_ + i));
    }
    for (int i = 0; i < kGroups; i += kWide) {
      Wide least, greatest, wrong;
      widen(low + i, least);
      widen(high + i, greatest);
      widen(error + i, wrong);
      least += wrong;
      greatest += wrong;
      const auto grid = wide_grid(least, greatest, codes);
      const Wide* const numbers = &grid.inverse;
      for (int n = 0; n < kNumbers; ++n) {
        const auto narrow = __builtin_convertvector(numbers[n], Narrow);
        __builtin_memcpy(grids_[n] + i, &narrow, sizeof narrow);
      }
    }
  }

  Grid grid(int64_t i) const { return Grid(grids_[0] + i, kGroups); }

 private:
  static constexpr int kWide = 8, kNumbers = sizeof(QuantizeGrid) / sizeof(float);
  using Wide = double __attribute__((vector_size(kWide * sizeof(double))));
  using Narrow = float __attribute__((vector_size(kWide * sizeof(float))));

  static void widen(const float* from, Wide& to) {
    Narrow narrow;
    __builtin_memcpy(&narrow, from, sizeof narrow);
    to = __builtin_convertvector(narrow, Wide);
  }

  Float low_[kGroups], high_[kGroups], error_[kGroups];
  float grids_[kNumbers][kGroups];
};

template <class T>
void write_groups(const QuantizeChunk& chunk, int64_t group, const QuantizeCodes& codes, bool streams) {
  const Blend<T> blend(chunk.w0, chunk.w1, chunk.alpha);
  auto* w = static_cast<typename T::out*>(chunk.w);
  GroupGrids grids;
  for (int i = 0; i < GroupGrids::kGroups; ++i) grids.set(i, set1(0.0f), set1(0.0f), set1(0.0f));
  for (int64_t from = 0; from < chunk.n; from += GroupGrids::kGroups * group) {
    const auto bound = [&](int64_t i) { return std::min(from + i * group, chunk.n); };
    const int64_t filled = std::min<int64_t>((chunk.n - from + group - 1) / group, GroupGrids::kGroups);
    for (int64_t i = 0; i < filled; ++i) {
      const auto extremes = extremes_of(blend, chunk.alpha, bound(i), bound(i + 1));
      grids.set(i, extremes.least(), extremes.greatest(), extremes.error());
    }
    grids.close(codes);
    for (int64_t i = 0; i < filled; ++i)
      write_range<false>(blend, chunk.alpha, bound(i), bound(i + 1), grids.grid(i), w,
                         streams && reinterpret_cast<uintptr_t>(w + bound(i)) % kCacheLine == 0);
  }
  if (streams) stream_end();
}

ValueRange range(const QuantizeChunk& chunk) {
  return with_types(chunk.in, chunk.out, chunk.w1, [&](auto types) {
    const Blend<decltype(types)> blend(chunk.w0, chunk.w1, chunk.alpha);
    const auto extremes = extremes_of(blend, chunk.alpha, 0, chunk.n);
    const float error = reduce(extremes.error());
    return ValueRange{reduce_least(extremes.least()) + error, reduce_greatest(extremes.greatest()) + error};
  });
}

void write(const QuantizeChunk& chunk, const QuantizeGrid& grid, bool streams) {
  with_types(chunk.in, chunk.out, chunk.w1, [&](auto types) {
    using T = decltype(types);
    write_range<true>(Blend<T>(chunk.w0, chunk.w1, chunk.alpha), chunk.alpha, 0, chunk.n, Grid(grid),
                      static_cast<typename T::out*>(chunk.w), streams);
    if (streams) stream_end();
  });
}

void groups(const QuantizeChunk& chunk, int64_t group, const QuantizeCodes& codes, bool streams) {
  with_types(chunk.in, chunk.out, chunk.w1,
             [&](auto types) { write_groups<decltype(types)>(chunk, group, codes, streams); });
}
