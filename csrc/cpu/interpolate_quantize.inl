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

  ValueRange range() const {
    Float least = low[0], greatest = high[0], sum = spoilt[0];
    for (int v = 1; v < kApart; ++v) {
      least = lowered_to(least, low[v]);
      greatest = raised_to(greatest, high[v]);
      sum = add(sum, spoilt[v]);
    }
    const float error = reduce(sum);
    return {reduce_least(least) + error, reduce_greatest(greatest) + error};
  }
};

template <class T>
ValueRange range_of(const Blend<T>& blend, float alpha, int64_t begin, int64_t end) {
  Extremes<T> extremes;
  for (; begin + kBlock <= end; begin += kBlock) extremes.block(blend, begin);
  if (begin < end) extremes.block(Tail<T>(blend, begin, end).blend(alpha), 0);
  return extremes.range();
}

struct Grid {
  Float inverse, zero, lowest, highest, part, step, offset, scale;

  explicit Grid(const QuantizeGrid& g)
      : inverse(set1(g.inverse)),
        zero(set1(g.zero)),
        lowest(set1(g.lowest)),
        highest(set1(g.highest)),
        part(set1(g.part)),
        step(set1(g.step)),
        offset(set1(g.offset)),
        scale(set1(g.scale)) {}

  Float value(Float x) const {
    const Float code = lowered_to(raised_to(add(nearest(mul(x, inverse)), zero), lowest), highest);
    return mul(add(mul(floored(mul(code, part)), step), offset), scale);
  }
};

template <class T, bool kStream>
void write_block(const Blend<T>& from, int64_t i, const Grid& grid, typename T::out* w) {
  from.fetch(i + kAhead);
  if constexpr (!kStream) fetch_block<true>(w, kAhead);
  for (int v = 0; v < kVectors; ++v) {
    const Float value = rounded<typename T::out>(grid.value(from.at(i + v * kLanes)));
    if constexpr (kStream)
      stream(w + v * kLanes, value);
    else
      store(w + v * kLanes, value);
  }
}

template <class T>
void write_range(const Blend<T>& blend, float alpha, int64_t begin, int64_t end, const Grid& grid, typename T::out* w,
                 bool streams) {
  if (streams)
    for (; begin + kBlock <= end; begin += kBlock) write_block<T, true>(blend, begin, grid, w + begin);
  else
    for (; begin + kBlock <= end; begin += kBlock) write_block<T, false>(blend, begin, grid, w + begin);
  if (begin == end) return;
  Tail<T> tail(blend, begin, end);
  write_block<T, false>(tail.blend(alpha), 0, grid, tail.w);
  copy(w + begin, tail.w, end - begin);
}

template <class T>
void write_groups(const QuantizeChunk& chunk, int64_t group, const QuantizeCodes& codes, bool streams) {
  constexpr int kGroups = 16;  // whose grids are computed side by side
  const Blend<T> blend(chunk.w0, chunk.w1, chunk.alpha);
  auto* w = static_cast<typename T::out*>(chunk.w);
  ValueRange ranges[kGroups] = {};
  QuantizeGrid grids[kGroups];
  for (int64_t from = 0; from < chunk.n; from += kGroups * group) {
    const auto bound = [&](int64_t i) { return std::min(from + i * group, chunk.n); };
    const int64_t filled = std::min<int64_t>((chunk.n - from + group - 1) / group, kGroups);
    for (int64_t i = 0; i < filled; ++i) ranges[i] = range_of(blend, chunk.alpha, bound(i), bound(i + 1));
    for (int i = 0; i < kGroups; ++i) grids[i] = quantize_grid(ranges[i], codes);
    for (int64_t i = 0; i < filled; ++i)
      write_range(blend, chunk.alpha, bound(i), bound(i + 1), Grid(grids[i]), w,
                  streams && reinterpret_cast<uintptr_t>(w + bound(i)) % kCacheLine == 0);
  }
  if (streams) stream_end();
}

ValueRange range(const QuantizeChunk& chunk) {
  return with_types(chunk.in, chunk.out, chunk.w1, [&](auto types) {
    return range_of(Blend<decltype(types)>(chunk.w0, chunk.w1, chunk.alpha), chunk.alpha, 0, chunk.n);
  });
}

void write(const QuantizeChunk& chunk, const QuantizeGrid& grid, bool streams) {
  with_types(chunk.in, chunk.out, chunk.w1, [&](auto types) {
    using T = decltype(types);
    write_range(Blend<T>(chunk.w0, chunk.w1, chunk.alpha), chunk.alpha, 0, chunk.n, Grid(grid),
                static_cast<typename T::out*>(chunk.w), streams);
    if (streams) stream_end();
  });
}

void groups(const QuantizeChunk& chunk, int64_t group, const QuantizeCodes& codes, bool streams) {
  with_types(chunk.in, chunk.out, chunk.w1,
             [&](auto types) { write_groups<decltype(types)>(chunk, group, codes, streams); });
}
