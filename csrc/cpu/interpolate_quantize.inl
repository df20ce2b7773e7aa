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
ValueRange range_of(const QuantizeChunk& chunk) {
  const Blend<T> blend(chunk.w0, chunk.w1, chunk.alpha);
  const int64_t whole = chunk.n / kBlock * kBlock;
  Extremes<T> extremes;
  for (int64_t i = 0; i < whole; i += kBlock) extremes.block(blend, i);
  if (whole < chunk.n) {
    const Tail<T> tail(blend, whole, chunk.n);
    extremes.block(tail.blend(chunk.alpha), 0);
  }
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
void write_chunk(const QuantizeChunk& chunk, const QuantizeGrid& values, bool streams) {
  const Blend<T> blend(chunk.w0, chunk.w1, chunk.alpha);
  const Grid grid(values);
  const int64_t whole = chunk.n / kBlock * kBlock;
  auto* w = static_cast<typename T::out*>(chunk.w);
  if (streams) {
    for (int64_t i = 0; i < whole; i += kBlock) write_block<T, true>(blend, i, grid, w + i);
    stream_end();
  } else {
    for (int64_t i = 0; i < whole; i += kBlock) write_block<T, false>(blend, i, grid, w + i);
  }
  if (whole == chunk.n) return;
  Tail<T> tail(blend, whole, chunk.n);
  write_block<T, false>(tail.blend(chunk.alpha), 0, grid, tail.w);
  copy(w + whole, tail.w, chunk.n - whole);
}

ValueRange range(const QuantizeChunk& chunk) {
  return with_types(chunk.in, chunk.out, chunk.w1, [&](auto types) { return range_of<decltype(types)>(chunk); });
}

void write(const QuantizeChunk& chunk, const QuantizeGrid& grid, bool streams) {
  with_types(chunk.in, chunk.out, chunk.w1, [&](auto types) { write_chunk<decltype(types)>(chunk, grid, streams); });
}
